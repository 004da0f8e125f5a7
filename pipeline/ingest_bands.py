"""Which bands of a source stay out of the scene, and why; nothing goes unsaid."""

import re
from typing import Any

import numpy as np

from pipeline import ingest_options
from pipeline.errors import UserError
from pipeline.ingest_options import Options
from pipeline.sources.layout import Cube

Array = np.ndarray[Any, np.dtype[Any]]

_TILE = 64
_MOST_TILES = 32
# Fewer pixels than this say nothing about noise.
_LEAST_PIXELS = 64


def dropped_bands(
    cube: Cube, wavelength_nm: tuple[float, ...] | None, options: Options
) -> dict[str, list[int]]:
    """Return the bands to leave out, counted from 0, under the reason that names them first.

    Raises:
        UserError: An option does not fit the source, or no band is left.
    """
    bands = cube.data.shape[0]
    wanted = {"--drop-bands": ingest_options.parse_bands(options.drop_bands, bands)}
    if options.drop_wavelengths is not None:
        wanted["--drop-wavelengths"] = in_ranges(options.drop_wavelengths, wavelength_nm)
    if not options.keep_bad_bands:
        wanted["the source's list of bad bands"] = list(cube.bad_bands)
    if options.drop_noisy is not None:
        snr = signal_to_noise(cube.data, _nodata(cube, options), _offset(cube))
        reason = f"--drop-noisy: signal-to-noise ratio below {options.drop_noisy:g}"
        wanted[reason] = np.flatnonzero(snr < options.drop_noisy).tolist()
    chosen: dict[str, list[int]] = {}
    gone: set[int] = set()
    for reason, some in wanted.items():
        new = sorted(set(some) - gone)
        gone.update(new)
        if new:
            chosen[reason] = new
    if len(gone) == bands:
        raise UserError(f"{', '.join(chosen)}: none of the {bands} bands is left; drop fewer")
    return chosen


def in_ranges(text: str, wavelength_nm: tuple[float, ...] | None) -> list[int]:
    """Return the bands whose wavelength lies in ranges such as "1340-1450,1800-1960" in nm.

    Raises:
        UserError: The wavelengths are not known, or the text or a range fits nothing.
    """
    if wavelength_nm is None:
        raise UserError("--drop-wavelengths: the source states no wavelengths; give them with --wavelengths")
    nm = np.asarray(wavelength_nm)
    found: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)\s*", word)
        if match is None or float(match[1]) > float(match[2]):
            raise UserError(
                f"--drop-wavelengths: expected ranges in nm such as 1340-1450,1800-1960, found {text!r}"
            )
        inside = np.flatnonzero((nm >= float(match[1])) & (nm <= float(match[2])))
        if not len(inside):
            raise UserError(
                f"--drop-wavelengths: expected bands between {word.strip()} nm, found none; the source has "
                f"{nm.min():g} to {nm.max():g} nm"
            )
        found.update(inside.tolist())
    return sorted(found)


def signal_to_noise(data: Any, fill: float | None, offset: float = 0.0) -> Array:
    """Return mean over noise of every band (band,), measured on at most 32 tiles of 64 x 64 pixels.

    Noise is what two neighbouring bands and the neighbouring pixel cannot predict, by linear
    regression in each tile (Roger and Arnold 1996, International Journal of Remote Sensing
    17(10)); the median over the tiles counts. 0 for bands without data.

    Args:
        data: dask array (band, y, x).
        fill: The stored value of no data.
        offset: What to add to stored numbers so that 0 means no signal.
    """
    means, noises = [], []
    for y, x in _corners(*data.shape[1:]):
        # One tile at a time: all of them would not fit where a cube does not.
        raw = np.asarray(data[:, y : y + _TILE, x : x + _TILE].compute(scheduler="synchronous"))
        tile = raw.astype(np.float64)
        tile[raw == fill] = np.nan
        tile[~np.isfinite(tile)] = np.nan
        mean, noise = _tile_noise(tile + offset)
        means.append(mean)
        noises.append(noise)
    mean, noise = _median(means), _median(noises)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.abs(mean) / noise
    # No noise at all is a noiseless band, unless it holds nothing.
    return np.where(np.isnan(mean) | (mean == 0), 0.0, np.where(np.isnan(snr), np.inf, snr))


def _tile_noise(tile: Array) -> tuple[Array, Array]:
    """Return the mean and the noise of each band (band,) of a tile; NaN where it has too few pixels."""
    bands = len(tile)
    mean, noise = np.full(bands, np.nan), np.full(bands, np.nan)
    live = np.flatnonzero(np.isfinite(tile).sum(axis=(1, 2)) >= _LEAST_PIXELS)
    for at, band in enumerate(live):
        near = [live[i] for i in (at - 1, at + 1, at + 2, at - 2) if 0 <= i < len(live)][:2]
        columns = [tile[b, :, 1:].ravel() for b in near] + [tile[band, :, :-1].ravel()]
        design = np.stack([np.ones_like(columns[0]), *columns], axis=1)
        target = tile[band, :, 1:].ravel()
        valid = np.isfinite(target) & np.isfinite(design).all(axis=1)
        mean[band] = np.nanmean(tile[band])
        if valid.sum() < _LEAST_PIXELS:
            continue
        fit = np.linalg.lstsq(design[valid], target[valid], rcond=None)[0]
        left = target[valid] - design[valid] @ fit
        noise[band] = np.sqrt((left**2).sum() / (valid.sum() - design.shape[1]))
    return mean, noise


def ranges(bands: list[int]) -> str:
    """Return ascending band numbers in the form "0-1,4"."""
    runs: list[list[int]] = []
    for band in bands:
        if runs and band == runs[-1][1] + 1:
            runs[-1][1] = band
        else:
            runs.append([band, band])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _corners(height: int, width: int) -> list[tuple[int, int]]:
    """Return the first pixels of tiles spread evenly over an image."""
    places = [(y, x) for y in range(0, height, _TILE) for x in range(0, width, _TILE)]
    count = min(_MOST_TILES, len(places))
    return [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]


def _median(values: list[Array]) -> Array:
    """Return the median over tiles, NaN where no tile has a value."""
    stacked = np.stack(values)
    known = np.isfinite(stacked).any(axis=0)
    result = np.full(stacked.shape[1], np.nan)
    result[known] = np.nanmedian(stacked[:, known], axis=0)
    return result


def _nodata(cube: Cube, options: Options) -> float | None:
    return options.fill if options.fill is not None else cube.fill


def _offset(cube: Cube) -> float:
    return (cube.add_offset or 0.0) / (cube.scale_factor or 1.0)
