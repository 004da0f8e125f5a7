"""Several flight lines as one lazy cube on one grid."""

from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np

from pipeline import ingest_balance
from pipeline.errors import UserError
from pipeline.ingest_options import Options
from pipeline.ingest_warp import Grid, Layer, grid_of, union_grid
from pipeline.sources.layout import Cube

Array = np.ndarray[Any, np.dtype[Any]]

# Wavelengths further apart than this, in nm, are different bands.
_SAME_BAND_NM = 0.5
# Bands that are averaged at once, as float64.
_BANDS_AT_ONCE = 8


@dataclass(frozen=True)
class Mosaic:
    """Flight lines on one grid.

    Attributes:
        lines: The images, each read through the grid.
        grid: The grid.
        fill: The value of no data.
        dtype: The stored type.
        overlap: "first", "last" or "mean": what a pixel takes that several lines show.
        gains: What to multiply each line with (line, band), or None.
        zero: The stored number that means no signal, around which gains turn.
    """

    lines: tuple[Layer, ...]
    grid: Grid
    fill: float
    dtype: np.dtype[Any]
    overlap: str
    gains: Array | None
    zero: float

    def block(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a block of the mosaic (band, y, x).

        A pixel takes its whole spectrum from one line, unless the rule is "mean". Memory: a block and
        one window of a line, with "mean" of each line.
        """
        bands = self.lines[0].data.shape[0]
        result = np.full((bands, y1 - y0, x1 - x0), self.fill, self.dtype)
        read = ((i, line.read(y0, y1, x0, x1)) for i, line in enumerate(self.lines))
        found = ((i, block) for i, block in read if block is not None)
        if self.overlap == "mean":
            return self._mean(dict(found), result)
        for i, block in found:
            valid = has_data(block, self.fill)
            shown = valid.any(axis=0)
            if self.overlap == "first":
                shown &= ~has_data(result, self.fill).any(axis=0)
            spectra = block[:, shown]
            if self.gains is not None:
                spectra = self._balanced(spectra.astype(np.float64), self.gains[i])
                spectra = self._stored(spectra, valid[:, shown])
            result[:, shown] = spectra
        return result

    def _mean(self, blocks: dict[int, Array], result: Array) -> Array:
        """Fill the result with the mean of the lines, some bands at a time."""
        for first in range(0, len(result), _BANDS_AT_ONCE):
            bands = slice(first, first + _BANDS_AT_ONCE)
            total = np.zeros(result[bands].shape, np.float64)
            count = np.zeros(total.shape, np.uint16)
            for i, block in blocks.items():
                valid = has_data(block[bands], self.fill)
                value = np.where(valid, block[bands], 0).astype(np.float64)
                if self.gains is not None:
                    value = self._balanced(value, self.gains[i][bands])
                total += value * valid
                count += valid
            result[bands] = self._stored(total / np.maximum(count, 1), count > 0)
        return result

    def _balanced(self, values: Array, gains: Array) -> Array:
        """Return float numbers (band, …) multiplied with the gain of each band."""
        gain = gains.reshape(-1, *[1] * (values.ndim - 1))
        balanced: Array = (values - self.zero) * gain + self.zero
        return balanced

    def _stored(self, values: Array, valid: Array) -> Array:
        """Return float numbers as the stored type: rounded, inside its range, never the fill by accident."""
        if self.dtype.kind == "f":
            return np.where(valid, values, self.fill).astype(self.dtype)
        info = np.iinfo(self.dtype)
        whole = np.clip(np.rint(values), info.min, info.max).astype(self.dtype)
        whole[whole == self.fill] = _beside(self.fill, self.dtype)
        return np.where(valid, whole, self.fill).astype(self.dtype)


def mosaic(cubes: list[Cube], names: list[str], options: Options) -> tuple[Cube, dict[str, Any]]:
    """Return the flight lines as one cube, and what a scene should keep about them.

    The grid is that of the first line, made as large as all lines together; lines on another grid
    or in another CRS are resampled.

    Raises:
        UserError: A line has no place, no value of no data, or other bands, type or scale.
    """
    first = _same_kind(cubes, names)
    grids = [grid_of(cube, name) for cube, name in zip(cubes, names, strict=True)]
    grid = union_grid(grids, names[0])
    fill = _common_fill(cubes, names)
    layers = tuple(
        Layer(_refilled(cube, fill), own, grid, fill, options.resampling)
        for cube, own in zip(cubes, grids, strict=True)
    )
    zero = -(first.add_offset or 0.0) / (first.scale_factor or 1.0)
    gains = ingest_balance.gains(layers, grid, zero, options.chunk) if options.balance else None
    whole = Mosaic(
        layers, grid, fill, np.dtype(first.data.dtype).newbyteorder("="), options.overlap, gains, zero
    )
    if options.overlap == "last":
        order = tuple(reversed(range(len(layers))))
        flipped = gains[list(order)] if gains is not None else None
        whole = replace(whole, lines=tuple(layers[i] for i in order), gains=flipped, overlap="first")
    about: dict[str, Any] = {"mosaic": names, "mosaic_overlap": options.overlap}
    about["mosaic_resampling"] = [None if layer.aligned else options.resampling for layer in layers]
    if gains is not None:
        about["mosaic_gains"] = np.round(gains, 6).tolist()
    bad = sorted({band for cube in cubes for band in cube.bad_bands})
    cube = replace(
        first,
        data=_lazy(whole, options.chunk),
        fill=fill,
        crs_wkt=grid.crs_wkt,
        transform=grid.transform,
        bad_bands=tuple(bad),
        flipped=False,
        notes=_notes(layers, names, grid, options, gains),
    )
    return cube, about


def has_data(block: Array, fill: float) -> Array:
    """Whether stored numbers are data: neither fill nor, for floats, NaN."""
    valid: Array = block != fill
    return valid & ~np.isnan(block) if block.dtype.kind == "f" else valid


def _lazy(whole: Mosaic, chunk: int) -> Any:
    """Return the mosaic as a dask array with a block for each chunk of the scene."""
    shape = (whole.lines[0].data.shape[0], whole.grid.height, whole.grid.width)

    def block(block_id: tuple[int, int, int] = (0, 0, 0)) -> Array:
        y0, x0 = block_id[1] * chunk, block_id[2] * chunk
        return whole.block(y0, min(y0 + chunk, shape[1]), x0, min(x0 + chunk, shape[2]))

    sizes = da.core.normalize_chunks((-1, chunk, chunk), shape)
    return da.map_blocks(block, chunks=sizes, dtype=whole.dtype, meta=np.empty((0, 0, 0), whole.dtype))


def _same_kind(cubes: list[Cube], names: list[str]) -> Cube:
    """Return the first cube, with wavelengths if any line has them; UserError when lines differ."""
    first = cubes[0]
    nm = next((cube.wavelength_nm for cube in cubes if cube.wavelength_nm is not None), None)
    for cube, name in zip(cubes[1:], names[1:], strict=True):
        pairs = {
            "bands": (first.data.shape[0], cube.data.shape[0]),
            "type": (first.data.dtype.newbyteorder("="), cube.data.dtype.newbyteorder("=")),
            "scale factor": (first.scale_factor, cube.scale_factor),
            "offset": (first.add_offset, cube.add_offset),
        }
        for what, (expected, found) in pairs.items():
            if expected != found:
                raise UserError(
                    f"{name}: flight lines of one mosaic must agree: expected {what} {expected} as in "
                    f"{names[0]}, found {found}"
                )
        if cube.wavelength_nm is not None and nm is not None:
            apart = np.abs(np.subtract(cube.wavelength_nm, nm)).max()
            if apart > _SAME_BAND_NM:
                raise UserError(
                    f"{name}: flight lines of one mosaic must have the same wavelengths, found some "
                    f"{apart:.3g} nm apart from the other lines"
                )
    return replace(first, wavelength_nm=nm)


def _common_fill(cubes: list[Cube], names: list[str]) -> float:
    """Return the no-data value of the mosaic, that of the first line."""
    for cube, name in zip(cubes, names, strict=True):
        if cube.fill is None and cube.data.dtype.kind != "f":
            raise UserError(
                f"{name}: a mosaic of whole numbers needs a value of no data, found none in this source; "
                "name it with --fill"
            )
    return cubes[0].fill if cubes[0].fill is not None else float("nan")


def _beside(fill: float, kind: np.dtype[Any]) -> int:
    """Return the whole number beside a fill, for data that would be it by accident."""
    return int(fill) - 1 if fill > np.iinfo(kind).min else int(fill) + 1


def _refilled(cube: Cube, fill: float) -> Any:
    """Return the data of a line with the mosaic's value of no data, its own data moved off that by one."""
    own = cube.fill
    if own is None or own == fill or (np.isnan(own) and np.isnan(fill)):
        return cube.data
    kind = cube.data.dtype
    beside = np.nextafter(kind.type(fill), kind.type(np.inf)) if kind.kind == "f" else _beside(fill, kind)
    kept = da.where(cube.data == fill, np.asarray(beside, kind), cube.data)
    return da.where(cube.data == own, np.asarray(fill, kind), kept)


def _notes(
    layers: tuple[Layer, ...], names: list[str], grid: Grid, options: Options, gains: Array | None
) -> tuple[str, ...]:
    """Return what the user should know about the mosaic."""
    notes = [
        f"mosaic of {len(layers)} flight lines, {grid.height} x {grid.width} pixels (y, x), "
        f"overlaps: {options.overlap}"
    ]
    for i, (layer, name) in enumerate(zip(layers, names, strict=True)):
        how = "as it is" if layer.aligned else f"resampled ({options.resampling})"
        gain = f", times {gains[i].min():.3f} to {gains[i].max():.3f}" if gains is not None else ""
        notes.append(f"  {name}: {how}{gain}")
    return tuple(notes)
