"""The map as polygons: a GeoPackage with one feature for each patch of a class."""

import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import shapely
import zarr
from rasterio.features import shapes
from rasterio.transform import Affine

from pipeline import storage
from pipeline.areas import pixel_areas
from pipeline.classes import ClassTable
from pipeline.export import class_table
from pipeline.overviews import layer
from pipeline.patches import Patches, find_patches, strips
from pipeline.scene import Scene

Array = np.ndarray[Any, np.dtype[Any]]

LAYER = "map"
_STRIP_PIXELS = 2**22  # pixels in memory at once; what they need is some 40 bytes each
_BATCH = 10_000  # features written at once


def write_polygons(
    map_path: str | Path, scene: Scene, path: Path, min_px: int, rows: int | None = None
) -> dict[str, int]:
    """Write the map as polygons in the scene's CRS and return how many there are and what is left out.

    Patches of fewer than `min_px` pixels become part of their largest neighbour. Those without a neighbour,
    islands in no data, are left out. Each feature has `code`, `name`, `color`, `pixels` and, on a grid with a
    CRS, `hectares`. Memory: a strip of rows and the patches that reach beyond it, see `patches`.

    Args:
        map_path: A finished map.
        scene: The scene that was mapped.
        path: The GeoPackage; it appears, or replaces an older one, once it is complete.
        min_px: The minimum mapping unit, pixels.
        rows: Rows of a strip, by default as many as hold some four million pixels.
    """
    group = zarr.open_group(str(map_path), mode="r", use_consolidated=False)
    source = layer(group, "class")
    chunk = source.chunks[0]
    rows = rows or max(1, _STRIP_PIXELS // (source.shape[1] * chunk)) * chunk
    per_row, surface = pixel_areas(scene)

    def read(y0: int, y1: int) -> Array:
        return np.asarray(source[y0:y1])

    patches = find_patches(read, scene.height, rows, per_row, min_px)
    kept = np.flatnonzero(patches.pixels_P >= min_px)
    with storage.workshop(path) as folder:
        features = _outlines(source, scene, rows, patches, min_px)
        _write(folder / path.name, features, patches, class_table(group), scene.crs_wkt, surface is not None)
    left_out = patches.pixels_P[patches.pixels_P < min_px]
    return {"polygons": len(kept), "left_out": len(left_out), "left_out_pixels": int(left_out.sum())}


def _outlines(
    source: "zarr.Array[Any]", scene: Scene, rows: int, patches: Patches, min_px: int
) -> Iterator[tuple[int, shapely.Geometry]]:
    """Yield patches and their outlines, each in the strip where it ends."""
    parts: defaultdict[int, list[shapely.Geometry]] = defaultdict(list)
    for strip, y0, y1 in strips(scene.height, rows):
        inside = patches.in_strip(strip, np.asarray(source[y0:y1]))
        present, short = np.unique(inside, return_inverse=True)
        wanted = np.concatenate([[0], patches.pixels_P])[present] >= min_px
        short = short.reshape(inside.shape).astype(np.int32)
        for outline, value in shapes(short, mask=wanted[short], transform=Affine.translation(0, y0)):
            parts[int(present[int(value)]) - 1].append(shapely.geometry.shape(outline))
        for patch in sorted(patch for patch in parts if patches.last_strip_P[patch] == strip):
            yield patch, _placed(_joined(parts.pop(patch)), scene)


def _joined(parts: list[shapely.Geometry]) -> shapely.Geometry:
    """Join what strips have cut; in pixels, whole numbers, that is exact."""
    return parts[0] if len(parts) == 1 else shapely.simplify(shapely.union_all(parts), 0)


def _placed(outline: shapely.Geometry, scene: Scene) -> shapely.Geometry:
    """Move an outline from columns and rows to the scene's grid; without one, rows count downwards."""
    a, b, c, d, e, f = scene.transform or (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)

    def move(points: Array) -> Array:
        column, row = points.T
        return np.stack([a * column + b * row + c, d * column + e * row + f], axis=1)

    return shapely.transform(outline, move)


def _write(
    path: Path,
    features: Iterable[tuple[int, shapely.Geometry]],
    patches: Patches,
    table: ClassTable,
    crs_wkt: str | None,
    has_area: bool,
) -> None:
    """Write features in batches; a layer without any is written as well."""
    about = {
        code: (name, color) for code, name, color in zip(table.codes, table.names, table.colors, strict=True)
    }
    waiting = iter(features)
    first = True
    while (batch := list(itertools.islice(waiting, _BATCH))) or first:
        at = np.array([patch for patch, _ in batch], np.int64)
        code = patches.code_P[at]
        columns: dict[str, Array] = {
            "code": code.astype(np.int32),
            "name": np.array([about[int(value)][0] for value in code], object),
            "color": np.array([about[int(value)][1] for value in code], object),
            "pixels": patches.pixels_P[at],
        }
        if has_area:
            columns["hectares"] = patches.area_P[at]
        with warnings.catch_warnings():
            # A scene need not say where it lies; neither do its polygons then.
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            pyogrio.raw.write(
                str(path),
                np.asarray(shapely.to_wkb([outline for _, outline in batch]), object),
                list(columns.values()),
                list(columns),
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                crs=crs_wkt,
                append=not first,
            )
        first = False
