"""Area of each class on the map, in hectares, as counted and as corrected with the test pixels.

An area needs a grid with a CRS; without one, areas are numbers of pixels.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import zarr

from mtmsd.areas import AreaEstimates, estimate_areas
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.export import class_table
from pipeline.overviews import layer
from pipeline.scene import Scene

Array = np.ndarray[Any, np.dtype[Any]]

_SQUARE_METRES = 1e4  # of a hectare
_DISTORTED = 0.01  # a projection that changes areas by more is corrected, as Web Mercator must be


def write_areas(folder: RunFolder, scene: Scene) -> dict[str, Any]:
    """Write ``areas.json`` of a finished map and return what it holds.

    ``classes`` has, for each class, ``pixels``, ``mapped`` (area), ``share`` of the map and, where the run
    has test pixels, ``adjusted`` (area), ``adjusted_ci95`` (half width) and user's and producer's accuracy
    weighted by area. ``left_out`` names classes of the map with fewer than two test pixels: their area is
    in no adjusted figure. Unknown figures are null.
    """
    group = zarr.open_group(str(folder.map), mode="r", use_consolidated=False)
    table = class_table(group)
    per_row, surface = pixel_areas(scene)
    pixels, mapped = count_areas(group, np.asarray(table.codes), per_row)
    total = mapped.sum()
    classes: list[dict[str, Any]] = [
        {"code": code, "name": name, "pixels": int(count), "mapped": float(area),
         "share": float(area / total) if total else None}
        for code, name, count, area in zip(table.codes, table.names, pixels, mapped, strict=True)
    ]  # fmt: skip
    found: dict[str, Any] = {
        "unit": "pixel" if surface is None else "ha",
        "surface": surface,
        "total": float(total),
        "classes": classes,
    }
    metrics = read_json(folder.metrics) if folder.metrics.exists() else None
    if metrics is not None:
        _add_estimates(found, metrics, np.asarray(table.codes), mapped)
    write_json(folder.path / "areas.json", found)
    return found


def count_areas(group: zarr.Group, codes: Array, area_of_row: Array) -> tuple[Array, Array]:
    """Return the pixels and the area of each code (K,) on a map, read chunk by chunk.

    Args:
        group: A map.
        codes: The codes to count (K,), ascending; other values, as 0 for no data, count nowhere.
        area_of_row: Area of a pixel in each row (height,).
    """
    source = layer(group, "class")
    (height, width), (high, wide) = source.shape, source.chunks
    pixels, area = np.zeros(len(codes), np.int64), np.zeros(len(codes))
    for y, x in itertools.product(range(0, height, high), range(0, width, wide)):
        block = np.asarray(source[y : y + high, x : x + wide])
        at = np.minimum(np.searchsorted(codes, block), len(codes) - 1)
        at[codes[at] != block] = len(codes)
        rows = at + (len(codes) + 1) * np.arange(len(block))[:, None]
        counts = np.bincount(rows.ravel(), minlength=len(block) * (len(codes) + 1))
        by_row = counts.reshape(len(block), -1)[:, :-1]
        pixels += by_row.sum(axis=0)
        area += area_of_row[y : y + high] @ by_row
    return pixels, area


def pixel_areas(scene: Scene) -> tuple[Array, str | None]:
    """Return the area of a pixel in each row (height,) and on which surface it is measured.

    "plane": hectares, pixel size in the CRS. "ellipsoid": hectares, where the CRS counts degrees or
    distorts areas by more than 1 % in the middle of the scene; taken at the middle column of each row.
    None: the scene has no CRS or grid, and the areas are 1.
    """
    if scene.crs_wkt is None or scene.transform is None:
        return np.ones(scene.height), None
    crs = pyproj.CRS.from_wkt(scene.crs_wkt)
    a, b, _, d, e, _ = scene.transform
    units = [axis.unit_conversion_factor for axis in crs.axis_info[:2]] or [1.0]
    plane = abs(a * e - b * d) * units[0] * units[-1] / _SQUARE_METRES
    flat = np.full(scene.height, plane)
    if crs.is_geographic:
        return _geodesic_areas(scene, crs, range(scene.height)), "ellipsoid"
    if crs.geodetic_crs is None:
        return flat, "plane"
    middle = _geodesic_areas(scene, crs, [scene.height // 2])[0]
    if np.isfinite(middle) and abs(plane - middle) > _DISTORTED * middle:
        return _geodesic_areas(scene, crs, range(scene.height)), "ellipsoid"
    return flat, "plane"


def _geodesic_areas(scene: Scene, crs: pyproj.CRS, rows: Sequence[int]) -> Array:
    """Return the hectares on the ellipsoid of the pixel at the middle column of some rows."""
    geodetic, geod = crs.geodetic_crs, crs.get_geod()
    assert scene.transform is not None
    assert geodetic is not None
    assert geod is not None
    a, b, c, d, e, f = scene.transform
    column = scene.width / 2 + np.array([-0.5, 0.5, 0.5, -0.5])
    row = np.asarray(rows)[:, None] + np.array([0, 0, 1, 1])
    x, y = a * column + b * row + c, d * column + e * row + f
    longitude, latitude = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True).transform(x, y)
    degrees = np.degrees(geodetic.axis_info[0].unit_conversion_factor)
    corners = zip(longitude * degrees, latitude * degrees, strict=True)
    return np.array([abs(geod.polygon_area_perimeter(*pixel)[0]) for pixel in corners]) / _SQUARE_METRES


def _add_estimates(found: dict[str, Any], metrics: dict[str, Any], codes: Array, mapped: Array) -> None:
    """Add the accuracy-adjusted figures of the classes that were tested."""
    tested = [int(entry["code"]) for entry in metrics["per_class"]]
    at = np.searchsorted(codes, tested)
    try:
        estimates = estimate_areas(np.asarray(metrics.get("map_confusion", metrics["confusion"])), mapped[at])
    except ValueError:  # not two test pixels on any class of the map
        return
    found["overall_accuracy"] = _number(estimates.overall)
    found["overall_accuracy_ci95"] = _number(estimates.overall_ci)
    found["left_out"] = [
        found["classes"][i]["name"] for i, ok in zip(at, estimates.covered_K, strict=True)
        if not ok and mapped[i]
    ]  # fmt: skip
    for position, index in enumerate(at):
        found["classes"][index] |= _figures(estimates, position)


def _figures(estimates: AreaEstimates, k: int) -> dict[str, float | None]:
    return {
        "adjusted": _number(estimates.area_K[k]),
        "adjusted_ci95": _number(estimates.area_ci_K[k]),
        "users_accuracy": _number(estimates.users_K[k]),
        "users_accuracy_ci95": _number(estimates.users_ci_K[k]),
        "producers_accuracy": _number(estimates.producers_K[k]),
        "producers_accuracy_ci95": _number(estimates.producers_ci_K[k]),
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def read_areas(run_dir: Path) -> dict[str, Any] | None:
    """Return what ``areas.json`` of a run holds, None when there is none."""
    path = run_dir / "areas.json"
    return dict(read_json(path)) if path.exists() else None
