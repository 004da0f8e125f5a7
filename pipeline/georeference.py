"""Coordinates and CRS of a Zarr group, in CF form: arrays y, x and spatial_ref.

A transform is (a, b, c, d, e, f) in rasterio's order: x = a * column + b * row + c and
y = d * column + e * row + f, where whole numbers of column and row are pixel corners.
"""

import warnings
from typing import Any, cast

import numpy as np
import pyproj
import zarr
from pyproj.exceptions import CRSError

from pipeline.errors import UserError
from pipeline.scene_arrays import dimension_names, named_array

Transform = tuple[float, float, float, float, float, float]
Floats = np.ndarray[Any, np.dtype[np.float64]]

# How far, in pixels, coordinates may stray from a regular grid: float32 northings do by 1/8.
_REGULAR = 0.25
# Not compressed: small, and readable whatever codecs a reader was built with.
_PLAIN: dict[str, Any] = {"compressors": None, "overwrite": True}
# A cut-out that kept its parent's GeoTransform is off by at least one pixel, coordinates of corners by half.
_AGREES = 0.75


def parse_crs(text: str, where: str) -> pyproj.CRS:
    """Return the CRS that "EPSG:26915", WKT or PROJ text describes; UserError when none."""
    try:
        return pyproj.CRS.from_user_input(text)
    except CRSError as error:
        raise UserError(
            f"{where}: cannot understand the CRS {text[:60]!r}; give for example EPSG:26915"
        ) from error


def read_crs_wkt(group: zarr.Group, where: str) -> str | None:
    """Return the WKT of the CRS of ``reflectance``, or None when the group states none."""
    attributes = dict(_grid_mapping(group))
    for key in ("crs_wkt", "spatial_ref"):
        if attributes.get(key):
            wkt = str(attributes[key])
            parse_crs(wkt, f"{where}: attribute {key}")
            return wkt
    if "grid_mapping_name" not in attributes:
        return None
    try:
        return pyproj.CRS.from_cf(attributes).to_wkt()
    except (CRSError, KeyError) as error:
        raise UserError(
            f"{where}: cannot build a CRS from the grid mapping attributes; add crs_wkt"
        ) from error


def read_transform(group: zarr.Group, height: int, width: int, where: str) -> Transform | None:
    """Return the transform of a group, or None when it has none or an irregular grid.

    The GeoTransform of spatial_ref counts, unless regular y and x coordinates contradict it:
    cutting a window out with xarray shortens the coordinates and leaves GeoTransform stale.
    """
    stated = _stated_transform(group, where)
    y, x = read_coordinate(group, "y", height, where), read_coordinate(group, "x", width, where)
    return stated if y is None or x is None else settled_transform(stated, y, x)


def settled_transform(stated: Transform | None, y: Floats, x: Floats) -> Transform | None:
    """Return ``stated``, unless y (height,) and x (width,) are regular and contradict it."""
    rows, columns = regular(y), regular(x)
    if rows is None or columns is None or _rotated(stated) or (plain_index(y) and plain_index(x)):
        return stated
    if stated is not None and _agree(stated, y, x):
        return stated
    return columns[1], 0.0, columns[0], 0.0, rows[1], rows[0]


def read_coordinate(group: zarr.Group, name: str, size: int, where: str) -> Floats | None:
    """Return the coordinate ``name`` (size,) as float64, or None when it is absent."""
    array = group.get(name)
    if not isinstance(array, zarr.Array) or array.dtype.kind not in "iuf":
        return None
    if array.shape != (size,):
        raise UserError(
            f"{where}: coordinate {name} must have {size} values, one for each pixel along {name}, "
            f"found shape {array.shape}"
        )
    return np.asarray(array[:], np.float64)


def pixel_centres(transform: Transform, height: int, width: int) -> tuple[Floats, Floats] | None:
    """Return the y (height,) and x (width,) pixel centres; None for a rotated grid."""
    if _rotated(transform):
        return None
    a, _, c, _, e, f = transform
    rows, columns = (np.arange(n, dtype=np.float64) + 0.5 for n in (height, width))
    return cast(Floats, f + e * rows), cast(Floats, c + a * columns)


def coarser(transform: Transform, step: int) -> Transform:
    """Return the transform of the grid whose pixels are step x step of these pixels."""
    a, b, c, d, e, f = transform
    return a * step, b * step, c, d * step, e * step, f


def write_grid(
    group: zarr.Group,
    crs_wkt: str | None,
    transform: Transform | None,
    y: Floats | None,
    x: Floats | None,
) -> None:
    """Add or replace y, x and spatial_ref of a group and point its (..., y, x) arrays to it."""
    crs = pyproj.CRS.from_wkt(crs_wkt) if crs_wkt else None
    for name, values in (("y", y), ("x", x)):
        if values is not None:
            about = _axis_attributes(name, crs)
            named_array(group, name, (name,), about, data=values, chunks=(max(1, len(values)),), **_PLAIN)
    referenced = crs is not None or transform is not None
    if referenced:
        attributes = _mapping_attributes(crs, crs_wkt, transform)
        named_array(group, "spatial_ref", (), attributes, data=np.array(0, np.int64), **_PLAIN)
    for _, array in group.arrays():
        if dimension_names(array)[-2:] == ("y", "x"):
            # xarray warns about a grid mapping that is named and not there.
            kept = {k: v for k, v in array.attrs.items() if k != "grid_mapping"}
            array.attrs.put({**kept, "grid_mapping": "spatial_ref"} if referenced else kept)


def consolidate(group: zarr.Group) -> None:
    """Consolidate the metadata of a finished group, so that xarray opens it without a warning.

    Call it last: arrays that are added later stay invisible to readers.
    """
    with warnings.catch_warnings():
        # xarray expects consolidated metadata; zarr warns that the format does not define it yet.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group.store, path=group.path)


def _grid_mapping(group: zarr.Group) -> dict[str, Any]:
    """Return the attributes of the grid mapping variable, empty when there is none."""
    reflectance = group.get("reflectance")
    named = str(reflectance.attrs.get("grid_mapping", "")) if reflectance is not None else ""
    for name in (named.split(":")[0].strip(), "spatial_ref"):
        array = group.get(name) if name else None
        if isinstance(array, zarr.Array):
            return dict(array.attrs)
    return {}


def _stated_transform(group: zarr.Group, where: str) -> Transform | None:
    """Return the GeoTransform attribute, or None."""
    text = _grid_mapping(group).get("GeoTransform")
    return None if text is None else parse_transform(text, where)


def parse_transform(text: Any, where: str) -> Transform:
    """A GeoTransform attribute, "c a b f d e" or six numbers; UserError when it is neither."""
    try:
        words = text.split() if isinstance(text, str) else text
        c, a, b, f, d, e = (float(word) for word in words)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: GeoTransform of spatial_ref must be six numbers, found {text!r}"
        ) from error
    return a, b, c, d, e, f


def _rotated(transform: Transform | None) -> bool:
    return transform is not None and (transform[1] != 0 or transform[3] != 0)


def regular(values: Floats) -> tuple[float, float] | None:
    """Return (outer edge of the first pixel, spacing) of regular coordinates, else None."""
    if len(values) < 2:
        return None
    step = float(values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    if step == 0 or not np.abs(values - even).max() <= _REGULAR * abs(step):
        return None
    return float(values[0]) - step / 2, step


def plain_index(values: Floats) -> bool:
    """Whether coordinates only count the pixels 0, 1, 2, …, which places them nowhere."""
    return bool((values == np.arange(len(values))).all())


def _agree(transform: Transform, y: Floats, x: Floats) -> bool:
    """Whether first and last coordinate lie where an unrotated transform puts them."""
    rows, columns = cast(tuple[Floats, Floats], pixel_centres(transform, len(y), len(x)))
    a, e = transform[0], transform[4]
    off_y = max(abs(rows[0] - y[0]), abs(rows[-1] - y[-1]))
    off_x = max(abs(columns[0] - x[0]), abs(columns[-1] - x[-1]))
    return bool(off_y <= _AGREES * abs(e) and off_x <= _AGREES * abs(a))


def _axis_attributes(name: str, crs: pyproj.CRS | None) -> dict[str, Any]:
    """Return the CF attributes of coordinate y or x in this CRS."""
    for axis in crs.cs_to_cf() if crs is not None else ():
        if axis.get("axis") == name.upper():
            return dict(axis)
    return {"axis": name.upper()}


def _mapping_attributes(
    crs: pyproj.CRS | None, crs_wkt: str | None, transform: Transform | None
) -> dict[str, Any]:
    """Return the attributes of spatial_ref, in the form that CF and GDAL share."""
    attributes: dict[str, Any] = {}
    if crs is not None:
        for key, value in crs.to_cf().items():
            attributes[key] = value.tolist() if isinstance(value, np.ndarray) else value
        attributes["crs_wkt"] = attributes["spatial_ref"] = crs_wkt
    if transform is not None:
        a, b, c, d, e, f = transform
        attributes["GeoTransform"] = " ".join(repr(float(v)) for v in (c, a, b, f, d, e))
    return attributes
