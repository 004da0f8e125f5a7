"""GeoTIFF and ENVI rasters through rioxarray, with CRS, no-data value and wavelengths."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rioxarray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.classes import ClassTable, table_of
from pipeline.errors import UserError
from pipeline.georeference import Transform
from pipeline.scene_arrays import NM_PER_UNIT
from pipeline.sources.layout import Cube, LabelMap, block_width, check_numeric

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


def read_cube(path: Path, chunk: int) -> Cube:
    """Open a raster as a lazy cube.

    Raises:
        UserError: GDAL cannot read it, or its numbers are not real.
    """
    path = data_file(path)
    with _opened(path) as source:
        dtype = np.dtype(source.dtypes[0])
        check_numeric(dtype, str(path))
        wide = block_width(source.count, source.width, dtype, chunk)
        scale, offset = _packing(source, path)
        details: dict[str, Any] = {
            "fill": source.nodata,
            "scale_factor": scale,
            "add_offset": offset,
            "wavelength_nm": _wavelengths(source),
            "crs_wkt": source.crs.to_wkt() if source.crs else None,
            "transform": _transform(source),
        }
    return Cube(_lazy(path, {"band": -1, "y": chunk, "x": wide}), **details)


def read_labels(path: Path) -> LabelMap:
    """Open a raster of one band as a lazy label map, with class names and colours if tagged.

    Raises:
        UserError: GDAL cannot read it, or it has several bands.
    """
    path = data_file(path)
    with _opened(path) as source:
        check_numeric(np.dtype(source.dtypes[0]), str(path))
        if source.count != 1:
            raise UserError(f"{path}: a label map must have one band, found {source.count}")
        details: dict[str, Any] = {
            "fill": source.nodata,
            "classes": _classes(source),
            "crs_wkt": source.crs.to_wkt() if source.crs else None,
            "transform": _transform(source),
        }
    return LabelMap(_lazy(path, {"band": 1, "y": 2048, "x": 2048})[0], **details)


def _opened(path: Path) -> Any:
    """Open a raster; UserError when GDAL cannot."""
    with warnings.catch_warnings():
        # A raster without a place is a plain image here, which the caller handles.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            return rasterio.open(path)
        except RasterioError as error:
            raise UserError(f"{path}: cannot read it as a raster: {error}") from error


def _lazy(path: Path, chunks: dict[str, int]) -> Any:
    """Return the raster as a dask array (band, y, x) in its stored numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        opened: Any = rioxarray.open_rasterio(path, chunks=chunks, cache=False)
    return opened.data


def _transform(source: Any) -> Transform | None:
    """Return the transform, or None where GDAL found none and gave the identity."""
    if source.transform.is_identity:
        return None
    # Adding 0.0 turns the -0.0 of some drivers into 0.0.
    a, b, c, d, e, f = (value + 0.0 for value in tuple(source.transform)[:6])
    return a, b, c, d, e, f


def _packing(source: Any, path: Path) -> tuple[float | None, float | None]:
    """Return the scale and offset of all bands, None where they change nothing."""
    scales, offsets = set(source.scales), set(source.offsets)
    if len(scales) > 1 or len(offsets) > 1:
        raise UserError(
            f"{path}: all bands must share one scale and offset, found scales {sorted(scales)} "
            f"and offsets {sorted(offsets)}; unify them first (gdal_translate -unscale)"
        )
    scale, offset = scales.pop(), offsets.pop()
    return (scale if scale != 1 else None), (offset if offset != 0 else None)


def _wavelengths(source: Any) -> tuple[float, ...] | None:
    """Return the wavelengths in nm from the band tags; None unless every band has one."""
    found = []
    for band in range(1, source.count + 1):
        tags = {key.lower(): value for key, value in source.tags(band).items()}
        unit = tags.get("wavelength_units", tags.get("wavelength_unit", "nm")).lower()
        micrometres = source.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
        try:
            if "wavelength" in tags:
                # Some writers state no unit; no optical sensor sees below 100 nm.
                value = float(tags["wavelength"])
                factor = NM_PER_UNIT.get(unit, 1000.0 if value < 100 else 1.0)
                found.append(value * factor)
            elif micrometres is not None:
                found.append(float(micrometres) * 1000)
        except ValueError:
            return None
    return tuple(round(nm, 6) for nm in found) if len(found) == source.count else None


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
        for code, name in enumerate(names)
    )


def _names(text: str | None) -> list[str]:
    """Read a JSON list, or ENVI's "{a, b}"."""
    if text is None:
        return []
    try:
        listed = json.loads(text)
    except json.JSONDecodeError:
        listed = text.strip("{} \n").split(",")
    return [str(name).strip() for name in listed] if isinstance(listed, list) else []
