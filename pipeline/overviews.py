"""Overviews of map.zarr: the map at a half, a quarter, … of its resolution, and thumbnails of it.

Class codes are reduced by majority, confidence and entropy by their mean; no data counts in
neither. Beside their CF coordinates, groups carry the Zarr conventions of GeoZarr: spatial, proj and, where
there are overviews, multiscales.
"""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyproj
import zarr

from pipeline.georeference import coarser, consolidate
from pipeline.scene import Scene, write_georeference
from pipeline.scene_arrays import named_array

Array = np.ndarray[Any, np.dtype[Any]]
ZarrArray = zarr.Array[Any]

LAYERS = ("class", "confidence", "entropy")
SMALL_ENOUGH = 512  # pixels along the larger side of the coarsest overview
_LARGEST = np.uint32(2**16 - 1)  # class code
_CONVENTIONS = {
    "multiscales": ("d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    "proj": (
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "Coordinate reference system information for geospatial data",
    ),
}


def overview_steps(height: int, width: int) -> tuple[int, ...]:
    """Return the map pixels to a side of an overview pixel, level by level: 2, 4, …"""
    steps: list[int] = []
    side = max(height, width)
    while side >= SMALL_ENOUGH or (not steps and side > 1):
        steps.append(2 ** (len(steps) + 1))
        side = -(-side // 2)
    return tuple(steps)


def majority(codes: Array) -> Array:
    """Return the most frequent code (0..65535) of every 2 x 2 pixels of codes (2y, 2x) as (y, x).

    0 (no data) only where all four are 0; of equally frequent codes the smallest.
    """
    four = _quarters(codes)
    same = np.ones(four.shape, np.uint32)
    for i, j in itertools.combinations(range(4), 2):
        equal = four[i] == four[j]
        same[i] += equal
        same[j] += equal
    # More votes first, then the smaller code.
    rank = np.where(four > 0, same << 16 | (_LARGEST - four), 0).max(axis=0)
    return np.where(rank > 0, _LARGEST - (rank & _LARGEST), 0).astype(codes.dtype)


def mean(values: Array) -> Array:
    """Return the mean of every 2 x 2 pixels of values (2y, 2x) without NaN, as (y, x)."""
    four = _quarters(values)
    known = np.isfinite(four)
    count = known.sum(axis=0)
    total = np.where(known, four, 0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(values.dtype)


def write_overviews(map_path: str | Path, scene: Scene) -> None:
    """Add the groups overview_2, overview_4, … to a finished map, each from the one before.

    Overviews that are there already are made anew. Reads and writes chunk by chunk.
    """
    group = zarr.open_group(str(map_path), mode="r+", use_consolidated=False)
    attributes = {k: v for k, v in group.attrs.items() if k != "multiscales"}
    group.attrs.put(attributes)  # says "no overviews" until all of them are complete
    for name in [name for name, _ in group.groups() if name.startswith("overview_")]:
        del group[name]
    height, width = layer(group, "class").shape
    steps = overview_steps(height, width)
    finer = group
    for step in steps:
        level = group.create_group(f"overview_{step}")
        for name in LAYERS:
            _write_level(layer(finer, name), level)
        write_georeference(level, scene, step=step)
        level.attrs.put(_spatial(scene, -(-height // step), -(-width // step), step))
        consolidate(level)
        finer = level
    spatial = _spatial(scene, height, width, 1)
    group.attrs.put({**attributes, **(_multiscales(height, width, steps, spatial) if steps else spatial)})
    consolidate(group)


def thumbnail(group: zarr.Group, name: str, max_side: int) -> tuple[Array, int]:
    """Return a layer of a map, at most `max_side` pixels along a side, and its step in pixels.

    Takes every n-th pixel of the coarsest overview that is still large enough.
    """
    array = layer(group, name)
    step = 1
    for factor in overview_steps(*array.shape):
        coarse = group.get(f"overview_{factor}")
        if not isinstance(coarse, zarr.Group) or max(layer(coarse, name).shape) < max_side:
            break
        array, step = layer(coarse, name), factor
    skip = -(-max(array.shape) // max_side)
    return np.asarray(array[::skip, ::skip]), step * skip


def layer(group: zarr.Group, name: str) -> ZarrArray:
    """Return an array of a map or of an overview; KeyError when there is none."""
    return cast(ZarrArray, group[name])


def _quarters(values: Array) -> Array:
    """Return the four pixels of every 2 x 2 square: (4, y, x)."""
    return np.stack([values[i::2, j::2] for i in (0, 1) for j in (0, 1)])


def _windows(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    for y in range(0, shape[0], chunks[0]):
        for x in range(0, shape[1], chunks[1]):
            yield (
                slice(y, min(y + chunks[0], shape[0])),
                slice(x, min(x + chunks[1], shape[1])),
            )


def _write_level(source: ZarrArray, level: zarr.Group) -> None:
    """Add `source` at half its resolution to a group, under its name; chunks by as many threads as cores."""
    shape = tuple(-(-n // 2) for n in source.shape)
    chunks = tuple(min(c, n) for c, n in zip(source.chunks, shape, strict=True))
    target = named_array(
        level,
        source.basename,
        ("y", "x"),
        dict(source.attrs),
        shape=shape,
        chunks=chunks,
        dtype=source.dtype,
        compressors=source.compressors,
        fill_value=source.fill_value,
    )
    whole = source.dtype.kind in "iu"

    def reduce(window: tuple[slice, slice]) -> None:
        y, x = window
        fine = np.asarray(source[2 * y.start : 2 * y.stop, 2 * x.start : 2 * x.stop])
        missing = [(0, n % 2) for n in fine.shape]  # at an odd edge the outer pixels do not exist
        fine = np.pad(fine, missing, constant_values=0 if whole else np.nan)
        target[y, x] = majority(fine) if whole else mean(fine)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(reduce, _windows(shape, chunks)):
            pass


def _spatial(scene: Scene, height: int, width: int, step: int) -> dict[str, Any]:
    """Return the attributes of the Zarr conventions spatial and proj for a group, at one level.

    spatial:registration is left at its default, "pixel": stated, it makes GDAL warn of odd sizes.
    """
    described: dict[str, Any] = {"spatial:dimensions": ["y", "x"], "spatial:shape": [height, width]}
    used = ["spatial"]
    if scene.transform is not None:
        a, b, c, d, e, f = transform = coarser(scene.transform, step)
        x, y = ([0, a * width, b * height, a * width + b * height],
                [0, d * width, e * height, d * width + e * height])  # fmt: skip
        described["spatial:transform"] = list(transform)
        described["spatial:bbox"] = [c + min(x), f + min(y), c + max(x), f + max(y)]
    if scene.crs_wkt is not None:
        crs = pyproj.CRS.from_wkt(scene.crs_wkt)
        code = ":".join(crs.to_authority() or ())
        described |= {"proj:code": code} if code else {"proj:wkt2": crs.to_wkt("WKT2_2019")}
        used.append("proj")
    return described | {"zarr_conventions": [_convention(name) for name in used]}


def _multiscales(height: int, width: int, steps: tuple[int, ...], spatial: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a map with overviews: those of spatial and proj, and multiscales.

    The full resolution is named by its array, overviews by their groups, as GDAL does it: readers find
    the array of the same name in each group.
    """
    layout: list[dict[str, Any]] = []
    for step in (1, *steps):
        level: dict[str, Any] = {
            "asset": LAYERS[0] if step == 1 else f"overview_{step}",
            "transform": {"scale": [1.0, 1.0] if step == 1 else [2.0, 2.0], "translation": [0.0, 0.0]},
            "spatial:shape": [-(-height // step), -(-width // step)],
        }
        if layout:
            level["derived_from"] = layout[-1]["asset"]
        if "spatial:transform" in spatial:
            level["spatial:transform"] = list(coarser(spatial["spatial:transform"], step))
        layout.append(level)
    conventions = [_convention("multiscales"), *spatial["zarr_conventions"]]
    described = {"multiscales": {"layout": layout, "resampling_method": "mode"}}
    return spatial | described | {"zarr_conventions": conventions}


def _convention(name: str) -> dict[str, str]:
    uuid, description = _CONVENTIONS[name]
    base = "https://{}/zarr-conventions/{}"
    return {
        "name": name,
        "uuid": uuid,
        "schema_url": base.format("raw.githubusercontent.com", f"{name}/refs/tags/v0.1/schema.json"),
        "spec_url": base.format("github.com", f"{name}/blob/v0.1/README.md"),
        "description": description,
    }
