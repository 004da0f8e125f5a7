"""The stored arrays of a scene: open, check and walk through them chunk by chunk."""

import base64
import binascii
import itertools
import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import BaseZarrError, ZarrUserWarning

from pipeline import storage
from pipeline.chunks import read_region
from pipeline.classes import ClassTable, from_attributes, plain_table
from pipeline.errors import UserError, one_line, store_says
from pipeline.nanometres import NM_PER_UNIT

Array = np.ndarray[Any, np.dtype[Any]]
ZarrArray = zarr.Array[Any]
Region = tuple[slice, ...]

_SAMPLED_CHUNKS = 64
_SAMPLED_BYTES = 256 * 2**20
_LARGEST_CODE = 2**16 - 1


def open_group(url: str) -> zarr.Group:
    """Open the Zarr group at a local path or fsspec URL for reading; UserError when none."""
    advice = "give the path of a scene, or make one with pipeline/ingest.py"
    storage.check_url(url)
    if "://" not in url and not Path(url).exists():
        if "working_dir_files" in Path(url).parts:
            advice = "a job runs in a copy of its working directory, without scenes: give an absolute path"
        raise UserError(f"scene {url}: no such file or folder; {advice}")
    try:
        if "://" in url:
            storage.ask(url)
        found = zarr.open(url, mode="r")
    except ImportError as error:
        raise UserError(f"scene {url}: {storage.missing_package(error)}") from error
    except (FileNotFoundError, BaseZarrError) as error:
        if (bucket := storage.missing_bucket(url)) is not None:
            raise UserError(f"scene {url}: the store has no bucket {bucket}; check its name") from error
        raise UserError(f"scene {url}: expected a Zarr group, found none; {advice}") from error
    except Exception as error:
        # Each remote store has its own errors for a wrong endpoint, bucket or credential.
        if "://" not in url and not isinstance(error, OSError | ValueError | KeyError | TypeError):
            raise
        raise UserError(f"scene {url}: cannot open it as a Zarr group: {store_says(error)}") from error
    if not isinstance(found, zarr.Group):
        raise UserError(
            f"scene {url}: expected a Zarr group, found a single array; put it into a group "
            "under the name reflectance"
        )
    return found


def check_members(group: zarr.Group, url: str) -> None:
    """Read the metadata of all that a scene may have; UserError where some cannot be understood."""
    for name in ("reflectance", "labels", "wavelength", "y", "x", "spatial_ref"):
        try:
            group.get(name)
        except (BaseZarrError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"scene {url}: the metadata of {name} cannot be understood ({one_line(error)}); restore it "
                "from a copy, or make the scene again"
            ) from error


def packing(attributes: Mapping[str, Any], name: str, otherwise: float, where: str) -> float:
    """Return a CF attribute of reflectance that is one number; UserError when it is none."""
    value = attributes.get(name, otherwise)
    try:
        number = float(np.asarray(value, np.float64).item())
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {name} of reflectance must be one finite number, found {value!r}")
    return number


def scene_array(group: zarr.Group, name: str, dims: tuple[str, ...], url: str) -> ZarrArray:
    """Return an array of the scene; UserError when it is missing or its dimensions differ."""
    found = group.get(name)
    if not isinstance(found, zarr.Array):
        with warnings.catch_warnings():
            # Zarr warns about files that are no part of it: the list below leaves them out.
            warnings.simplefilter("ignore", ZarrUserWarning)
            there = ", ".join(sorted(key for key, _ in group.members())) or "nothing"
        raise UserError(
            f"scene {url}: expected an array {name} {_tuple(dims)}, found {there}; "
            "rename it, or make a scene with pipeline/ingest.py"
        )
    names = dimension_names(found)
    if names != dims:
        shown = _tuple(names) if names else "no dimension names"
        raise UserError(
            f"scene {url}: {name} must have the dimensions {_tuple(dims)}, found {shown} with "
            f"shape {found.shape}; transpose or rename them"
        )
    return found


def dimension_names(array: ZarrArray) -> tuple[str, ...]:
    """Return the dimension names of a Zarr v2 (xarray's attribute) or v3 array, () when none."""
    names = getattr(array.metadata, "dimension_names", None)
    if names is None:
        names = array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()


def named_array(
    group: zarr.Group, name: str, dims: tuple[str, ...], attributes: dict[str, Any], **how: Any
) -> ZarrArray:
    """Create an array of a Zarr v2 or v3 group with dimension names that xarray and GDAL read.

    Args:
        group: Where it goes.
        name: Its name.
        dims: A name for each axis.
        attributes: Its attributes.
        how: The rest of what ``zarr.Group.create_array`` takes. In Zarr v2, xarray takes a ``fill_value``
            for missing data, so there is none by default.
    """
    if group.metadata.zarr_format == 2:
        attributes = {**attributes, "_ARRAY_DIMENSIONS": list(dims)}
    elif dims:
        how["dimension_names"] = dims
    return group.create_array(name, attributes=attributes, **{"fill_value": None} | how)


def wavelengths(group: zarr.Group, bands: int, url: str) -> tuple[float, ...] | None:
    """Return the wavelength of each band in nm, or None when the scene has none."""
    array = group.get("wavelength")
    if not isinstance(array, zarr.Array):
        return None
    if array.shape != (bands,):
        raise UserError(
            f"scene {url}: wavelength must have one value for each of the {bands} bands, found "
            f"shape {array.shape}"
        )
    unit = str(array.attrs.get("units", "nm"))
    values = np.asarray(array[:])
    if values.dtype.kind not in "iuf" or unit.lower() not in NM_PER_UNIT:
        raise UserError(f"scene {url}: wavelength must be numbers in nm, found {values.dtype} in {unit!r}")
    return tuple((values.astype(np.float64) * NM_PER_UNIT[unit.lower()]).tolist())


def class_table(group: zarr.Group, shape: tuple[int, int], url: str) -> ClassTable | None:
    """Check the labels, all of them, and return their classes; None without labels."""
    if "labels" not in group:
        return None
    labels = scene_array(group, "labels", ("y", "x"), url)
    where = f"scene {url}: labels"
    if labels.shape != shape:
        raise UserError(
            f"{where} must be as large as reflectance, {shape[0]} x {shape[1]} pixels (y, x), "
            f"found {labels.shape[0]} x {labels.shape[1]}"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where} must be unsigned integer codes, found {labels.dtype}")
    found: set[int] = set()
    for region in regions(labels):
        found.update(np.unique(_unfilled(labels, region)).tolist())
    if min(found, default=0) < 0 or max(found, default=0) > _LARGEST_CODE:
        raise UserError(
            f"{where} must hold codes from 0 (unlabelled) to {_LARGEST_CODE}, found "
            f"{min(found)} to {max(found)}; set unlabelled pixels to 0"
        )
    table = from_attributes(dict(labels.attrs), where)
    if table is None:
        return plain_table(found)
    unlisted = sorted(found - {0, *table.codes})
    if unlisted:
        raise UserError(
            f"{where} hold codes {unlisted} that flag_values {list(table.codes)} does not list; "
            "list them or set these pixels to 0"
        )
    return table


def fill_values(array: ZarrArray) -> tuple[float, ...]:
    """Return the stored values that mean "no data", as xarray would take them.

    Those are _FillValue and missing_value; in Zarr v2, _FillValue is the array's fill_value.
    """
    fills = stated_fills(array.attrs)
    if array.metadata.zarr_format == 2 and array.fill_value is not None:
        own = _number(np.asarray(array.fill_value).item())
        fills += [own] if own is not None else []
    return tuple(fills)


def stated_fills(attributes: Mapping[str, Any]) -> list[float]:
    """Return the values that attributes call "no data", each once."""
    fills: list[float] = []
    for key in ("_FillValue", "missing_value"):
        value = attributes.get(key, [])
        for one in [value] if isinstance(value, str) else np.ravel(value).tolist():
            if (fill := _number(one)) is not None and fill not in fills:
                fills.append(fill)
    return fills


def one_fill(data: Any, attributes: Mapping[str, Any]) -> tuple[Any, float | None]:
    """Return a dask array whose values of "no data" are all one, and that value (None: none is stated)."""
    import dask.array as da

    fills = stated_fills(attributes)
    if data.dtype.kind in "iu":
        limits = np.iinfo(data.dtype)
        fills = [fill for fill in fills if float(fill).is_integer() and limits.min <= fill <= limits.max]
    for other in fills[1:]:
        data = da.where(data == other, data.dtype.type(fills[0]), data)
    return data, fills[0] if fills else None


def encode_fill(value: float, dtype: np.dtype[Any]) -> int | str:
    """Return the _FillValue attribute of a Zarr v3 array in the form that xarray reads."""
    if dtype.kind == "f":
        return base64.standard_b64encode(struct.pack("<d", float(value))).decode()
    return int(value)


def codes(labels: ZarrArray, region: Region) -> Array:
    """Return the labels of a region as int32 codes, 0 where unlabelled or fill."""
    return _unfilled(labels, region).astype(np.int32)


def regions(array: ZarrArray) -> Iterator[Region]:
    """Yield the slices of every chunk of an array, in row-major order of the chunks."""
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    for index in itertools.product(*(range(count) for count in counts)):
        yield _region(array, index)


def sampled_regions(array: ZarrArray) -> Iterator[Region]:
    """Yield the slices of a bounded number of chunks, spread evenly over the array."""
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    chunk_bytes = int(np.prod(array.chunks)) * array.dtype.itemsize
    most = int(np.clip(_SAMPLED_BYTES // chunk_bytes, 1, _SAMPLED_CHUNKS))
    total = int(np.prod(counts))
    for flat in sorted({i * (total - 1) // max(1, most - 1) for i in range(most)}):
        yield _region(array, tuple(int(i) for i in np.unravel_index(flat, counts)))


def _region(array: ZarrArray, index: tuple[int, ...]) -> Region:
    """Return the slices of the chunk at this place of the chunk grid."""
    return tuple(
        slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, array.chunks, array.shape, strict=True)
    )


def _unfilled(labels: ZarrArray, region: Region) -> Array:
    """Return a region of the labels in their own type, fill values set to 0."""
    block = np.array(read_region(labels, region))
    for fill in fill_values(labels):
        block[block == fill] = 0
    return block


def _number(value: Any) -> float | None:
    """Read a fill value: a number, its text, or xarray's base64 form of a float."""
    if not isinstance(value, str):
        return value if isinstance(value, int | float) else None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return float(struct.unpack("<d", base64.standard_b64decode(value))[0])
    except (binascii.Error, struct.error):
        return None


def _tuple(names: tuple[str, ...]) -> str:
    return f"({', '.join(names)})"
