"""The command line of ingest as a value, and its words that are more than a number or a name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyproj
from pyproj.exceptions import ProjError

from pipeline.errors import UserError
from pipeline.georeference import Transform, parse_crs
from pipeline.scene_writer import is_free
from pipeline.sources.layout import Cube

_FILES = frozenset(
    (".tif", ".tiff", ".hdr", ".img", ".dat", ".mat", ".npy", ".nc", ".h5", ".he5", ".hdf5", ".gpkg", ".shp")
)
"""Endings of what is no scene."""


@dataclass(frozen=True)
class Options:
    """The command line of ingest; every field is the option of its name."""

    variable: str | None = None
    axes: str | None = None
    labels: Path | None = None
    labels_variable: str | None = None
    labels_axes: str = "yx"
    labels_layer: str | None = None
    labels_column: str | None = None
    labels_crs: str | None = None
    all_touched: bool = False
    warp_labels: bool = False
    purity: float = 0.75
    classes: Path | None = None
    drop_unlisted: bool = False
    crs: str | None = None
    transform: str | None = None
    pixel_size: str | None = None
    origin: str | None = None
    wavelengths: str | None = None
    scale_factor: float | None = None
    fill: float | None = None
    drop_bands: str | None = None
    drop_wavelengths: str | None = None
    drop_noisy: float | None = None
    keep_bad_bands: bool = False
    overlap: str = "first"
    resampling: str = "nearest"
    balance: bool = False
    chunk: int = 128


def check_target(target: Path, options: Options) -> None:
    """Refuse to write over what exists, and a scene named like a file of another kind."""
    if options.classes is not None and options.labels is None:
        raise UserError("--classes names the classes of --labels; give --labels too")
    hint = "" if options.labels else f"; did you mean --labels {target}?"
    if target.is_file():
        raise UserError(
            f"SCENE {target}: the last path is where the scene is written, and this is a file; give a new "
            f"path that ends in .zarr{hint}"
        )
    if not is_free(target):
        raise UserError(f"scene {target}: exists already; choose another path or remove it")
    if target.suffix.lower() in _FILES:
        raise UserError(
            f"SCENE {target}: the last path is where the scene, a Zarr group, is written; give one that ends "
            f"in .zarr, not in {target.suffix}"
        )


def parse_numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    """Read "1,2.5,…": as many numbers as ``count``; UserError otherwise."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UserError(
            f"{option}: expected {count} number{'s' * (count > 1)} separated by commas, found {text!r}"
        )
    return numbers


def parse_transform(transform: str | None, pixel_size: str | None, origin: str | None) -> Transform | None:
    """Return the transform from --transform, or from --pixel-size and --origin.

    The origin is the outer corner of the first pixel; rows run towards smaller y.

    Raises:
        UserError: Numbers that do not fit, a pixel of no size, or both forms at once.
    """
    if transform is not None:
        if pixel_size is not None or origin is not None:
            raise UserError("--transform: give either it or --pixel-size with --origin, not both")
        a, b, c, d, e, f = parse_numbers(transform, 6, "--transform")
    elif pixel_size is None and origin is None:
        return None
    elif pixel_size is None or origin is None:
        raise UserError("--pixel-size and --origin place a scene together: give both")
    else:
        x, y = parse_numbers(origin, 2, "--origin")
        size = parse_numbers(pixel_size, 1 + pixel_size.count(","), "--pixel-size")
        if len(size) > 2 or min(size) <= 0:
            raise UserError(f"--pixel-size: expected SIZE or X,Y above 0, found {pixel_size!r}")
        a, b, c, d, e, f = size[0], 0.0, x, 0.0, -size[-1], y
    if a * e == b * d:
        raise UserError(f"--transform: expected pixels with an area, found {transform!r}")
    return a, b, c, d, e, f


def parse_bands(text: str | None, bands: int) -> list[int]:
    """Return the band numbers, counted from 0, that "0-3,100" names.

    Raises:
        UserError: No such list, bands that the source lacks, or none left.
    """
    chosen: set[int] = set()
    for word in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
        if match is None:
            raise UserError(f"--drop-bands: expected a list such as 0-3,100, found {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < bands:
            raise UserError(f"--drop-bands: expected bands from 0 to {bands - 1}, found {word.strip()}")
        chosen.update(range(first, last + 1))
    if len(chosen) == bands:
        raise UserError(f"--drop-bands: {text} leaves none of the {bands} bands")
    return sorted(chosen)


def parse_wavelengths(text: str, bands: int) -> tuple[float, ...]:
    """Return one wavelength in nm for each band of the source, before any is dropped.

    Args:
        text: "380:1050", spread evenly over the bands, or a file of numbers in nm.
        bands: Bands of the source.

    Raises:
        UserError: No such file, no numbers, another count, or not plausible in nm.
    """
    match = re.fullmatch(r"([\d.]+):([\d.]+)", text)
    try:
        if match is not None:
            values = np.linspace(float(match[1]), float(match[2]), bands)
        else:
            words = re.split(r"[\s,;]+", Path(text).read_text().strip())
            values = np.array([float(word) for word in words])
    except OSError as error:
        raise UserError(
            f"--wavelengths {text}: expected FIRST:LAST or a file, found {error.strerror}"
        ) from error
    except ValueError as error:
        raise UserError(f"--wavelengths {text}: expected numbers in nm: {error}") from error
    if len(values) != bands:
        raise UserError(
            f"--wavelengths {text}: expected {bands} values, one for each band of the source, "
            f"found {len(values)}"
        )
    if not (values > 100).all():
        raise UserError(
            f"--wavelengths {text}: expected nanometres, found {values.min():g} to "
            f"{values.max():g}; multiply micrometres by 1000"
        )
    return tuple(values.tolist())


def stored_fill(option: float | None, found: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return the fill value to store: the option, else the source's, else NaN for floats.

    Raises:
        UserError: The option is no value of the type.
    """
    if dtype.kind == "f":
        return option if option is not None else found if found is not None else float("nan")
    info = np.iinfo(dtype)
    for value in (option, found):
        fits = value is not None and value == np.floor(value) and info.min <= value <= info.max
        if fits:
            return value
        if value is not None and value is option:
            raise UserError(
                f"--fill: expected a whole number from {info.min} to {info.max} for {dtype} "
                f"data, found {value:g}"
            )
    return None


def joined_fill(option: float | None, cube: Cube) -> tuple[Any, float | None, tuple[str, ...]]:
    """Return the data, the fill value to store, and what to say: the option joins the source's own value.

    Raises:
        UserError: The option is no value of the type.
    """
    dtype = cube.data.dtype
    own = None if cube.fill is None else stored_fill(None, cube.fill, dtype)
    wanted = stored_fill(option, None, dtype)
    if option is None or own is None or own == wanted or np.isnan(own):
        return cube.data, own if option is None and own is not None else wanted, ()
    value = dtype.type(option)
    unseen = np.isnan(cube.data) if np.isnan(value) else cube.data == value
    note = f"no data: --fill {option:g}, as the source's own {own:g}"
    return da.where(unseen, dtype.type(own), cube.data), own, (note,)


def one_crs(option: str | None, found: str | None, where: str) -> str | None:
    """Return the CRS of the scene as WKT from --crs and the source; UserError on conflict."""
    if option is None:
        return found
    wanted = parse_crs(option, "--crs")
    if found is not None and not same_crs(wanted, parse_crs(found, where)):
        raise UserError(
            f"{where}: geographic conflict: --crs says {wanted.name}, the source "
            f"{parse_crs(found, where).name}; drop the option or reproject the source"
        )
    return wanted.to_wkt()


def one_transform(
    option: Transform | None, found: Transform | None, size: tuple[int, int], where: str
) -> Transform | None:
    """Return the transform of the scene from the options and the source; UserError on conflict."""
    if option is None or found is None:
        return option if option is not None else found
    if not same_transform(option, found, size):
        raise UserError(
            f"{where}: geographic conflict: the options say transform {option}, the source "
            f"{found}; drop the options"
        )
    return found


def same_crs(one: pyproj.CRS, other: pyproj.CRS) -> bool:
    """Whether two CRS are the same, in whatever dialect of WKT each is written."""
    if one.equals(other, ignore_axis_order=True):
        return True
    codes = [crs.to_epsg(min_confidence=25) for crs in (one, other)]  # so unsure it compares names alone
    return codes[0] is not None and codes[0] == codes[1] and _same_grid(one, other, codes[0])


def _same_grid(one: pyproj.CRS, other: pyproj.CRS, code: int) -> bool:
    """Whether two CRS of the same registered name put longitudes and latitudes at the same coordinates."""
    area = pyproj.CRS.from_epsg(code).area_of_use
    if area is None:
        return False
    longitude, latitude = np.linspace(area.west, area.east, 5), np.linspace(area.south, area.north, 5)
    try:
        first, second = (
            np.stack(
                pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(
                    longitude, latitude
                )
            )
            for crs in (one, other)
        )
    except ProjError:
        return False
    return bool(np.allclose(first, second, rtol=0, atol=1e-3, equal_nan=True))


def same_transform(one: Transform, other: Transform, size: tuple[int, int]) -> bool:
    """Whether two transforms of (height, width) pixels agree: all corners to half a pixel."""
    side = abs(one[0] * one[4] - one[1] * one[3]) ** 0.5
    corners = [(row, column) for row in (0, size[0]) for column in (0, size[1])]
    return all(
        abs((one[i] - other[i]) * column + (one[i + 1] - other[i + 1]) * row + one[i + 2] - other[i + 2])
        <= side / 2
        for i in (0, 3)
        for row, column in corners
    )


def registered_crs(wkt: str) -> str:
    """Return "EPSG:…" for a CRS of that registry, in whatever dialect of WKT, else the WKT as it is.

    ENVI and Shapefiles write a dialect: the same CRS in the same words keeps scenes comparable.
    """
    crs = pyproj.CRS.from_wkt(wkt)
    if crs.datum is not None and "unknown" in crs.datum.name.lower():
        return wkt  # several of the registry would fit, metres apart
    code = crs.to_epsg()
    return f"EPSG:{code}" if code is not None else wkt
