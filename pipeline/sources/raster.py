"""GeoTIFF and ENVI rasters through rasterio, with CRS, no-data value and wavelengths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.classes import ClassTable, table_of
from pipeline.errors import UserError
from pipeline.georeference import Transform
from pipeline.sources import raster_bands
from pipeline.sources.layout import Cube, LabelMap, to_cube, to_labels

_ARBITRARY = ("LOCAL_CS", "ENGCRS", "ENGINEERINGCRS")
_DATA_SUFFIXES = ("", ".img", ".dat", ".raw", ".bin", ".bsq", ".bil", ".bip")


def data_file(path: Path) -> Path:
    """Return the file that GDAL opens: for an ENVI header, the data file beside it."""
    if path.suffix.lower() != ".hdr":
        return path
    for suffix in _DATA_SUFFIXES:
        data = path.with_suffix(suffix)
        if data.is_file():
            return data
    raise UserError(
        f"{path}: no data file beside this ENVI header; expected {path.stem} with one of the "
        f"endings {', '.join(_DATA_SUFFIXES[1:])} or none"
    )


class RasterArray:
    """A raster (band, y, x) as a sliceable array; it is opened anew for each read, in any thread."""

    def __init__(self, path: Path) -> None:
        """Look up size and type; UserError when GDAL cannot read the file."""
        self._path = path
        with _opened(path) as source:
            self.shape: tuple[int, ...] = (source.count, source.height, source.width)
            self.dtype: np.dtype[Any] = np.dtype(source.dtypes[0])
        self.ndim = 3

    def __getitem__(self, index: Any) -> Any:
        """Return the stored numbers of slices of bands, rows and columns."""
        bands, rows, columns = (range(*one.indices(n)) for one, n in zip(index, self.shape, strict=True))
        if not (len(bands) and len(rows) and len(columns)):
            return np.empty((len(bands), len(rows), len(columns)), self.dtype)
        window = Window(columns[0], rows[0], len(columns), len(rows))
        with _opened(self._path) as source:
            return source.read([band + 1 for band in bands], window=window)


class OneBand:
    """The only band of a raster as a sliceable array (y, x)."""

    def __init__(self, array: RasterArray) -> None:
        """Wrap a raster of one band."""
        self._array = array
        self.shape: tuple[int, ...] = array.shape[1:]
        self.dtype = array.dtype
        self.ndim = 2

    def __getitem__(self, index: Any) -> Any:
        """Return the stored numbers of slices of rows and columns."""
        return self._array[(slice(0, 1), *index)][0]


def read_cube(path: Path, chunk: int) -> Cube:
    """Open a raster as a lazy cube.

    Raises:
        UserError: GDAL cannot read it, it is cut off, or its numbers are not real.
    """
    path = data_file(path)
    array = RasterArray(path)
    data = to_cube(array, "byx", chunk, str(path))
    with _opened(path) as source:
        raster_bands.check_size(source, path)
        scale, offset, notes = raster_bands.packing(source, path)
        crs_wkt = _crs_wkt(source)
        wavelength_nm, odd = raster_bands.wavelengths(source, path)
        notes += odd
        if source.crs and crs_wkt is None:
            notes = (*notes, "its CRS is of no place on Earth")
        return Cube(
            data,
            fill=source.nodata,
            scale_factor=scale,
            add_offset=offset,
            wavelength_nm=wavelength_nm,
            crs_wkt=crs_wkt,
            transform=_transform(source),
            bad_bands=raster_bands.listed_bad(source),
            notes=notes,
        )


def read_labels(path: Path) -> LabelMap:
    """Open a raster of one band as a lazy label map, with class names and colours if tagged.

    Raises:
        UserError: GDAL cannot read it, it is cut off, or it has several bands.
    """
    path = data_file(path)
    array = RasterArray(path)
    if array.shape[0] != 1:
        raise UserError(f"{path}: a label map must have one band, found {array.shape[0]}")
    data = to_labels(OneBand(array), "yx", str(path))
    with _opened(path) as source:
        raster_bands.check_size(source, path)
        return LabelMap(
            data,
            fill=source.nodata,
            classes=_classes(source),
            crs_wkt=_crs_wkt(source),
            transform=_transform(source),
        )


def driver(path: Path) -> str:
    """Return the name of the GDAL driver that reads a raster."""
    with _opened(data_file(path)) as source:
        return str(source.driver)


def _opened(path: Path) -> Any:
    """Open a raster; UserError when GDAL cannot.

    rasterio warns of one without a place, which is a plain image here: callers quiet it.
    """
    try:
        return rasterio.open(path)
    except RasterioError as error:
        raise UserError(
            f"{path}: cannot read it as a raster: {error}; is it whole, and what its name says?"
        ) from error


def _crs_wkt(source: Any) -> str | None:
    """Return the CRS, or None where there is none or an arbitrary one, as ENVI has for plain images."""
    wkt = source.crs.to_wkt() if source.crs else ""
    return None if wkt.startswith(_ARBITRARY) else wkt or None


def _transform(source: Any) -> Transform | None:
    """Return the transform, or None where GDAL found none and gave the identity."""
    if source.transform.is_identity:
        return None
    # Adding 0.0 turns the -0.0 of some drivers into 0.0.
    a, b, c, d, e, f = (value + 0.0 for value in tuple(source.transform)[:6])
    return a, b, c, d, e, f


def _classes(source: Any) -> ClassTable | None:
    """Return the class names (tag class_names, indexed by code) with colours of the palette."""
    names = _names(source.tags(1).get("class_names") or source.tags().get("class_names"))
    names = names or _names(source.tags(ns="ENVI").get("class_names"))
    if not names:
        return None
    try:
        palette = source.colormap(1)
    except ValueError:
        palette = {}
    return table_of(
        (code, name, "#{:02x}{:02x}{:02x}".format(*palette[code][:3]) if code in palette else None)
        for code, name in names.items()
    )


def _names(text: str | None) -> dict[int, str]:
    """Code -> name from a JSON list, from {"1": "a"}, which our own maps have, or from ENVI's "{a, b}"."""
    if text is None:
        return {}
    try:
        listed = json.loads(text)
    except json.JSONDecodeError:
        listed = text.strip("{} \n").split(",")
    if isinstance(listed, list):
        listed = dict(enumerate(listed))
    if not isinstance(listed, dict) or not all(str(code).isdecimal() for code in listed):
        return {}
    return {int(code): str(name).strip() for code, name in listed.items()}
