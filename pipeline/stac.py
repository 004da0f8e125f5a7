"""A STAC item beside the files of a map, so that catalogues find it and know its classes.

Extensions: projection 2.0, raster 2.0, classification 2.0.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pystac
import shapely
from pyproj.exceptions import ProjError
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from shapely.geometry import mapping

from pipeline import scene_arrays
from pipeline.artifacts import RunFolder, write_json
from pipeline.classes import ClassTable
from pipeline.scene import Scene

Array = np.ndarray[Any, np.dtype[Any]]

RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
_OTHERS = {
    "map.zarr": ("Class, confidence and entropy as Zarr", "application/vnd.zarr; version=2", "data"),
    "map.gpkg": ("Classes as polygons", pystac.MediaType.GEOPACKAGE, "data"),
    "map_preview.png": ("Picture of the map with its legend", pystac.MediaType.PNG, "thumbnail"),
    "report.html": ("Report", pystac.MediaType.HTML, "metadata"),
    "metrics.json": ("Accuracy on test pixels", pystac.MediaType.JSON, "metadata"),
    "areas.json": ("Area of each class", pystac.MediaType.JSON, "metadata"),
}


def write_item(folder: RunFolder, scene: Scene, table: ClassTable) -> Path:
    """Write ``stac.json``, an item with relative links to what lies beside it, and return its path.

    ``datetime`` is that of the scene where its attributes ``time_coverage_start`` and ``time_coverage_end``
    tell it; otherwise the time when the map was made, which the description then says. A scene without a
    CRS gives an item without a geometry.

    Args:
        folder: A run with a finished map; files that are missing are left out.
        scene: The scene that was mapped.
        table: The classes of the map.
    """
    made = _time(folder.records().get("map", {}).get("finished")) or datetime.now(UTC)
    start, end = _taken(scene)
    about = f"Land cover of {Path(scene.url.rstrip('/')).name.removesuffix('.zarr')}, one class per pixel."
    if start is None:
        about += " The scene does not say when it was taken: datetime is when the map was made."
    geometry, bbox = _footprint(scene)
    item = pystac.Item(
        id=folder.path.name,
        geometry=geometry,
        bbox=bbox,
        datetime=None if end is not None else start or made,
        start_datetime=start if end is not None else None,
        end_datetime=end,
        properties={"created": pystac.utils.datetime_to_str(made), "description": about},
    )
    _add_projection(item, scene)
    metres = _pixel_metres(scene)
    if metres is not None:
        item.properties["gsd"] = metres
    _add_rasters(item, folder.path, table, metres)
    for name, (title, media_type, role) in _OTHERS.items():
        if (folder.path / name).exists():
            item.add_asset(_key(name), pystac.Asset(f"./{name}", title, None, media_type, [role]))
    path = folder.path / "stac.json"
    write_json(path, item.to_dict(include_self_link=False, transform_hrefs=False))
    return path


def _time(text: Any) -> datetime | None:
    """Read an ISO 8601 time, in UTC also when it names no zone; None when it is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _taken(scene: Scene) -> tuple[datetime | None, datetime | None]:
    """Return when the scene was taken: (start, end), (moment, None) or (None, None)."""
    attributes = scene_arrays.open_group(scene.url).attrs
    start, end = (_time(attributes.get(f"time_coverage_{edge}")) for edge in ("start", "end"))
    return (start, end) if start is not None and end is not None and end > start else (start or end, None)


def _footprint(scene: Scene) -> tuple[dict[str, Any] | None, list[float] | None]:
    """Return the scene's outline in longitude and latitude as GeoJSON, and its bounding box."""
    if scene.crs_wkt is None or scene.transform is None:
        return None, None
    a, b, c, d, e, f = scene.transform
    # Straight edges bend on the way to longitude and latitude: eight points along each keep their place.
    along = np.arange(8) / 8
    column = np.concatenate([along, np.ones(8), 1 - along, np.zeros(8), [0.0]]) * scene.width
    row = np.concatenate([np.zeros(8), along, np.ones(8), 1 - along, [0.0]]) * scene.height
    try:
        to_degrees = pyproj.Transformer.from_crs(scene.crs_wkt, "OGC:CRS84", always_xy=True)
    except ProjError:  # a grid of its own, or another planet's
        return None, None
    outline = np.stack(to_degrees.transform(a * column + b * row + c, d * column + e * row + f), axis=1)
    if not np.isfinite(outline).all():
        return None, None
    outline = outline.round(8)
    outline[:, 0] = np.unwrap(outline[:, 0], period=360)
    if abs(outline[-1, 0] - outline[0, 0]) > 180:  # round a pole: no polygon in longitude and latitude
        return None, None
    if np.sum(outline[:-1, 0] * outline[1:, 1] - outline[1:, 0] * outline[:-1, 1]) < 0:
        outline = outline[::-1]  # GeoJSON goes round anticlockwise
    (west, south), (east, north) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    if west >= -180 and east <= 180:
        return {"type": "Polygon", "coordinates": [outline.tolist()]}, [west, south, east, north]
    return _over_antimeridian(outline), [_wrapped(west), south, _wrapped(east), north]


def _over_antimeridian(outline: Array) -> dict[str, Any]:
    """Return an outline whose longitudes pass 180 degrees, cut there (RFC 7946, section 3.1.9)."""
    whole, parts = shapely.Polygon(outline), list[Any]()
    for turn in (-360, 0, 360):
        part = shapely.intersection(whole, shapely.box(turn - 180, -90, turn + 180, 90))
        if part.area:
            moved = shapely.orient_polygons(shapely.transform(part, lambda xy, by=turn: xy - [by, 0]))
            parts += getattr(moved, "geoms", [moved])
    return dict(mapping(shapely.MultiPolygon(parts)))


def _wrapped(longitude: float) -> float:
    return round((longitude + 180) % 360 - 180, 8)


def _add_projection(item: pystac.Item, scene: Scene) -> None:
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.shape = [scene.height, scene.width]
    if scene.transform is not None:
        projection.transform = list(scene.transform)
    if scene.crs_wkt is None:
        return
    crs = pyproj.CRS.from_wkt(scene.crs_wkt)
    code = ":".join(crs.to_authority() or ())
    if code:
        projection.code = code
    else:
        projection.code, projection.wkt2 = None, crs.to_wkt("WKT2_2019")


def _pixel_metres(scene: Scene) -> float | None:
    """Return the width of a pixel in metres on a projected grid."""
    if scene.crs_wkt is None or scene.transform is None:
        return None
    crs = pyproj.CRS.from_wkt(scene.crs_wkt)
    if not crs.is_projected:
        return None
    a, _, _, d, _, _ = scene.transform
    return round(float(np.hypot(a, d)) * crs.axis_info[0].unit_conversion_factor, 6)


def _add_rasters(item: pystac.Item, folder: Path, table: ClassTable, metres: float | None) -> None:
    """Add the GeoTIFFs with type, no-data value, pixel size and the table of the classes."""
    titles = {"map": "Class of each pixel", "confidence": "Probability of the class"}
    for name, title in titles.items():
        path = folder / f"{name}.tif"
        if not path.exists():
            continue
        asset = pystac.Asset(f"./{path.name}", title, None, pystac.MediaType.COG, ["data"])
        item.add_asset(name, asset)
        asset.extra_fields["data_type"] = table.code_type.name if name == "map" else "float32"
        asset.extra_fields |= {"nodata": 0 if name == "map" else "nan", "raster:sampling": "area"}
        if metres is not None:
            asset.extra_fields["raster:spatial_resolution"] = metres
        if name == "map":
            _add_classes(asset, table)
    if "map" in item.assets or "confidence" in item.assets:
        item.stac_extensions.append(RASTER)


def _add_classes(asset: pystac.Asset, table: ClassTable) -> None:
    nothing = Classification.create(0, "Outside of the scene's data", "no_data", "No data", nodata=True)
    classes = [nothing]
    for code, title, color in zip(table.codes, table.names, table.colors, strict=True):
        name = re.sub("[^0-9A-Za-z_-]+", "_", title) or f"class_{code}"
        classes.append(Classification.create(code, None, name, title, color.lstrip("#").upper()))
    ClassificationExtension.ext(asset, add_if_missing=True).apply(classes)


def _key(name: str) -> str:
    return {"map.zarr": "zarr", "map.gpkg": "polygons", "map_preview.png": "thumbnail"}.get(
        name, name.partition(".")[0]
    )
