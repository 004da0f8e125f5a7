"""Overviews of map.zarr: the map at a half, a quarter, … of its resolution, and thumbnails of it.

Class codes are reduced by majority, confidence and entropy by their mean; no data counts in
neither. The attributes follow the Zarr conventions multiscales, spatial and proj.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyproj
import zarr

from pipeline.georeference import coarser, consolidate
from pipeline.scene import Scene, write_georeference

Array = np.ndarray[Any, np.dtype[Any]]
ZarrArray = zarr.Array[Any]

LAYERS = ("class", "confidence", "entropy")
SMALL_ENOUGH = 512  # pixels along the larger side of the coarsest overview
WORTH_IT = 256  # a map up to this size gets no overview
_CONVENTIONS = {
    "multiscales": "d35379db-88df-4056-af3a-620245f8e347",
    "proj": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "spatial": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
}
_SCHEMA = "https://raw.githubusercontent.com/zarr-conventions/{}/refs/tags/v0.1/schema.json"


def overview_steps(height: int, width: int) -> tuple[int, ...]:
    """Return the map pixels to a side of an overview pixel, level by level: 2, 4, …"""
    steps: list[int] = []
    side = max(height, width)
    while side >= SMALL_ENOUGH or (not steps and side > WORTH_IT):
        steps.append(2 ** (len(steps) + 1))
        side = -(-side // 2)
    return tuple(steps)


def majority(codes: Array) -> Array:
    """Return the most frequent code of every 2 x 2 pixels of codes (2y, 2x) as (y, x).

    0 (no data) only where all four are 0; of equally frequent codes the smallest.
    """
    four = _quarters(codes).astype(np.int64)
    votes = (four[:, None] == four[None, :]).sum(axis=1)
    rank = np.where(four > 0, votes * 2**32 - four, -(2**62))
    best = rank.argmax(axis=0)
    return np.asarray(np.take_along_axis(four, best[None], axis=0)[0].astype(codes.dtype))


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
    group = zarr.open_group(map_path, mode="r+", use_consolidated=False)
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
        consolidate(level)
        finer = level
    if steps:
        group.attrs.put({**attributes, **_multiscales(scene, height, width, steps)})
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
    """Add `source` at half its resolution to a group, under its name."""
    shape = tuple(-(-n // 2) for n in source.shape)
    chunks = tuple(min(c, n) for c, n in zip(source.chunks, shape, strict=True))
    target = level.create_array(
        source.basename,
        shape=shape,
        chunks=chunks,
        dtype=source.dtype,
        fill_value=source.fill_value,
        dimension_names=("y", "x"),
        attributes=dict(source.attrs),
    )
    whole = source.dtype.kind in "iu"
    for y, x in _windows(shape, chunks):
        fine = np.asarray(source[2 * y.start : 2 * y.stop, 2 * x.start : 2 * x.stop])
        missing = [(0, n % 2) for n in fine.shape]  # at an odd edge the outer pixels do not exist
        fine = np.pad(fine, missing, constant_values=0 if whole else np.nan)
        target[y, x] = majority(fine) if whole else mean(fine)


def _multiscales(scene: Scene, height: int, width: int, steps: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes of the Zarr conventions multiscales, spatial and proj."""
    layout: list[dict[str, Any]] = []
    for number, step in enumerate((1, *steps)):
        asset = "." if step == 1 else f"overview_{step}"
        level: dict[str, Any] = {
            "asset": asset,
            "transform": {"scale": [1.0, 1.0] if step == 1 else [2.0, 2.0]},
            "spatial:shape": [-(-height // step), -(-width // step)],
        }
        if step > 1:
            level["derived_from"] = layout[number - 1]["asset"]
        if scene.transform is not None:
            level["spatial:transform"] = list(coarser(scene.transform, step))
        layout.append(level)
    described: dict[str, Any] = {
        "multiscales": {"layout": layout, "resampling_method": "mode"},
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": [height, width],
    }
    if scene.transform is not None:
        described["spatial:transform"] = list(scene.transform)
        described["spatial:registration"] = "pixel"
    used = {"multiscales", "spatial"}
    if scene.crs_wkt is not None:
        crs = pyproj.CRS.from_wkt(scene.crs_wkt)
        authority = crs.to_authority()
        if authority is not None:
            described["proj:code"] = ":".join(authority)
        else:
            described["proj:wkt2"] = crs.to_wkt()
        used.add("proj")
    described["zarr_conventions"] = [
        {"name": name, "uuid": uuid, "schema_url": _SCHEMA.format(name)}
        for name, uuid in _CONVENTIONS.items()
        if name in used
    ]
    return described
