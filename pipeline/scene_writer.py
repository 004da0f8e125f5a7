"""Write a scene: reflectance, labels, wavelengths and grid, lazily and all or nothing."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import FsspecStore, WrapperStore

from pipeline import georeference, storage
from pipeline.classes import ClassTable, to_attributes
from pipeline.errors import UserError, is_trouble, store_says
from pipeline.georeference import Transform
from pipeline.scene_arrays import encode_fill

# A label chunk covers 8 x 8 chunks of reflectance: still small, and few files.
_LABEL_CHUNKS = 8


def write_scene(
    path: str | Path,
    reflectance: Any,
    *,
    wavelength_nm: Any = None,
    crs: str | None = None,
    transform: Transform | None = None,
    labels: Any = None,
    classes: ClassTable | None = None,
    scale_factor: float | None = None,
    add_offset: float | None = None,
    fill_value: float | None = None,
    attributes: Mapping[str, Any] | None = None,
    chunk: int = 128,
    bands_per_chunk: int | None = None,
) -> None:
    """Write a scene as a Zarr v3 group; it appears under ``path`` once it is complete.

    Args:
        path: A local path or a URL where nothing lies yet.
        reflectance: NumPy or dask array (band, y, x); dask arrays are computed block by block.
        wavelength_nm: One value for each band.
        crs: What pyproj understands: "EPSG:26915", WKT, ….
        transform: (a, b, c, d, e, f) in rasterio's order.
        labels: NumPy or dask array (y, x) of codes, 0 = unlabelled.
        classes: The classes of the labels.
        scale_factor: CF packing: reflectance = stored * scale_factor + add_offset.
        add_offset: See scale_factor.
        fill_value: The stored value that means "no data".
        attributes: Attributes of the group.
        chunk: Pixels to a side of a reflectance chunk.
        bands_per_chunk: Bands of a chunk, by default all.

    Raises:
        UserError: Something lies at ``path``, or shapes, codes or the CRS do not fit.
    """
    import dask.array as da  # half a second that whoever only reads scenes is spared

    target = _free_path(path)
    reflectance = da.asarray(reflectance)
    _check_shapes(reflectance, wavelength_nm, labels, target)
    crs_wkt = georeference.parse_crs(crs, str(target)).to_wkt() if crs else None
    described = _packing(scale_factor, add_offset, fill_value, reflectance.dtype)
    if wavelength_nm is not None:
        described["coordinates"] = "wavelength"
    chunks = (bands_per_chunk or reflectance.shape[0], chunk, chunk)
    with _appearing(target) as place, _writers():
        group = zarr.create_group(place, zarr_format=3, attributes=dict(attributes or {}))
        stored = [_create(group, "reflectance", reflectance, chunks, fill_value, described)]
        if labels is not None:
            codes, table = _label_codes(labels, classes, target)
            side = _LABEL_CHUNKS * chunk
            stored.append(_create(group, "labels", codes, (side, side), 0, table))
        sources, targets = zip(*stored, strict=True)
        da.store(list(sources), list(targets), lock=False)
        _add_wavelengths(group, wavelength_nm)
        centres = georeference.pixel_centres(transform, *reflectance.shape[1:]) if transform else None
        georeference.write_grid(group, crs_wkt, transform, *(centres or (None, None)))
        georeference.consolidate(group)


@contextmanager
def _writers() -> Iterator[None]:
    """Threads for what dask computes here: they end before this does, so that nothing is written later."""
    import dask
    from dask.system import CPU_COUNT

    pool = ThreadPoolExecutor(CPU_COUNT)
    try:
        with dask.config.set(pool=pool):
            yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _appearing(target: Path) -> Iterator[str | Store]:
    """Give a place to write a group into, which becomes the target unless something fails.

    A sibling that is renamed, or for a URL the target itself, whose root comes last.
    """
    local = storage.is_local(target)
    place = target.with_name(f"{target.name}.{os.getpid()}.partial") if local else target
    try:
        if local:
            yield str(place)
            place.rename(_free_path(target))
        else:
            storage.remove(target)
            store = _RootLast(FsspecStore.from_url(str(target)))
            yield store
            (target / _ROOT).write_bytes(store.root)
    except BaseException as error:
        with suppress(Exception):
            storage.remove(place)
        if not is_trouble(error):
            raise
        raise UserError(f"scene {target}: could not be written: {store_says(error)}") from error


_ROOT = "zarr.json"


class _RootLast(WrapperStore[Store]):
    """A store that keeps the metadata of its root to itself: without them there is no group yet."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._root: Buffer | None = None

    @property
    def root(self) -> bytes:
        """What is to be written last."""
        assert self._root is not None
        return self._root.to_bytes()

    async def exists(self, key: str) -> bool:
        return self._root is not None if key == _ROOT else await super().exists(key)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key == _ROOT:
            return self._root
        return await super().get(key, prototype or default_buffer_prototype(), byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        if key == _ROOT:
            self._root = value
        else:
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)


def _free_path(path: str | Path) -> Path:
    """Return the absolute path, after checking that nothing lies there."""
    target = storage.location(str(path)).resolve()
    if not is_free(target):
        raise UserError(f"scene {target}: exists already; choose another path or remove it")
    return target


def is_free(target: Path) -> bool:
    """Whether nothing lies at a place, but, in an object store, arrays of a scene whose upload was cut off.

    These have no root: the same scene is written over them.
    """
    if storage.is_local(target):
        return not target.exists()
    there = storage.names(target)
    if not there:
        return not target.exists()
    return set(there) <= _PARTS and all(set(storage.names(target / part)) <= _OF_ARRAY for part in there)


_PARTS = frozenset(("reflectance", "labels", "wavelength", "y", "x", "spatial_ref"))
_OF_ARRAY = frozenset(("zarr.json", "c"))


def _check_shapes(reflectance: Any, wavelength_nm: Any, labels: Any, target: Path) -> None:
    """Raise UserError unless reflectance is (band, y, x) numbers and the rest fits it."""
    if reflectance.ndim != 3 or 0 in reflectance.shape or reflectance.dtype.kind not in "iuf":
        raise UserError(
            f"scene {target}: reflectance must be integer or float (band, y, x), found "
            f"{reflectance.dtype} with shape {reflectance.shape}"
        )
    if wavelength_nm is not None and len(wavelength_nm) != reflectance.shape[0]:
        raise UserError(
            f"scene {target}: expected one wavelength for each of the {reflectance.shape[0]} "
            f"bands, found {len(wavelength_nm)}"
        )
    if labels is not None and labels.shape != reflectance.shape[1:]:
        raise UserError(
            f"scene {target}: labels must have the shape {reflectance.shape[1:]} (y, x) of "
            f"reflectance, found {labels.shape}"
        )


def _create(
    group: zarr.Group,
    name: str,
    source: Any,
    chunks: tuple[int, ...],
    fill_value: float | None,
    attributes: dict[str, Any],
) -> tuple[Any, zarr.Array[Any]]:
    """Create the array and return it with its source, cut along the array's chunks."""
    chunks = tuple(min(c, n) for c, n in zip(chunks, source.shape, strict=True))
    array = group.create_array(
        name,
        shape=source.shape,
        dtype=source.dtype.newbyteorder("="),
        chunks=chunks,
        fill_value=fill_value if fill_value is not None else 0,
        dimension_names=("band", "y", "x")[-source.ndim :],
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        attributes=attributes,
    )
    # Blocks may hold several chunks, but no chunk may lie in two blocks.
    whole = all(size % c == 0 for sizes, c in zip(source.chunks, chunks, strict=True) for size in sizes[:-1])
    return (source if whole else source.rechunk(chunks)), array


def _packing(
    scale_factor: float | None,
    add_offset: float | None,
    fill_value: float | None,
    dtype: np.dtype[Any],
) -> dict[str, Any]:
    """Return the CF attributes that say how numbers are packed."""
    numbers = {"scale_factor": scale_factor, "add_offset": add_offset}
    attributes: dict[str, Any] = {k: float(v) for k, v in numbers.items() if v is not None}
    if fill_value is not None:
        attributes["_FillValue"] = encode_fill(fill_value, dtype)
    return attributes


def _label_codes(labels: Any, classes: ClassTable | None, target: Path) -> tuple[Any, dict[str, Any]]:
    """Return the labels as uint8 or uint16 and their attributes."""
    import dask.array as da

    codes = da.asarray(labels)
    if codes.dtype.kind not in "iu":
        raise UserError(f"scene {target}: labels must be integers, found {codes.dtype}")
    lowest, highest = (int(v) for v in da.compute(codes.min(), codes.max()))
    highest = max(highest, *(classes.codes if classes else ()), 0)
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise UserError(f"scene {target}: class codes must lie in 0..65535, found {lowest} to {highest}")
    return (
        codes.astype(np.min_scalar_type(highest)),
        to_attributes(classes) if classes is not None else {},
    )


def _add_wavelengths(group: zarr.Group, wavelength_nm: Any) -> None:
    if wavelength_nm is not None:
        group.create_array(
            "wavelength",
            data=np.asarray(wavelength_nm, np.float64),
            dimension_names=("band",),
            attributes={"units": "nm", "standard_name": "radiation_wavelength"},
        )
