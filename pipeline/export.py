"""From map.zarr to what people open: cloud-optimised GeoTIFFs and a preview picture.

A map is a Zarr group with `class` (y, x), 0 = no data, `confidence` (y, x) and `entropy` (y, x),
NaN = no data. The class table is read from the attributes of `class`, so that a map without
labels in its scene, made by an earlier model, has names and colours as well.
"""

import json
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
import zarr
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window

from pipeline import storage
from pipeline.classes import ClassTable, from_attributes
from pipeline.overviews import layer, thumbnail, write_overviews
from pipeline.scene import Scene

Array = np.ndarray[Any, np.dtype[Any]]
ZarrArray = zarr.Array[Any]

_CACHE_BYTES = 32 << 20
"""For GDAL, which takes a twentieth of the machine's memory by itself: the map's size, up to there."""

__all__ = ["class_image", "class_table", "preview", "write_cogs", "write_overviews"]


def write_cogs(map_path: str | Path, scene: Scene, out_dir: Path) -> tuple[Path, Path]:
    """Write map.tif and confidence.tif, cloud-optimised GeoTIFFs, and return their paths.

    map.tif has the class names as category names (map.tif.aux.xml) and as band tag
    `class_names`, and a colour table. The map is copied row of
    chunks by row of chunks.
    """
    group = zarr.open_group(str(map_path), mode="r", use_consolidated=False)
    table = class_table(group)
    classes, confidence = out_dir / "map.tif", out_dir / "confidence.tif"
    # The names go first: map.tif appears when everything about it is there.
    _write_category_names(out_dir / "map.tif.aux.xml", table)
    _write_cog(layer(group, "class"), scene, classes, table.code_type, table)
    _write_cog(layer(group, "confidence"), scene, confidence, np.dtype(np.float32), None)
    return classes, confidence


def preview(map_path: str | Path, out_png: Path, max_side: int = 1200) -> None:
    """Draw the class map with its legend as a PNG of about `max_side` pixels."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    group = zarr.open_group(str(map_path), mode="r", use_consolidated=False)
    table = class_table(group)
    image = class_image(thumbnail(group, "class", max_side)[0], table)
    rows, columns = image.shape[:2]
    wide = columns > 1.2 * rows
    scale = max_side / 100 / max(rows, columns)
    size = (columns * scale + (0.0 if wide else 2.4), rows * scale + (1.2 if wide else 0.0))
    figure = Figure(figsize=(max(size[0], 4.0), max(size[1], 2.0)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    longest = max(map(len, table.names))
    figure.legend(
        handles=[
            Patch(facecolor=color, edgecolor="0.4", linewidth=0.5, label=name)
            for name, color in zip(table.names, table.colors, strict=True)
        ],
        loc="outside lower center" if wide else "outside right upper",
        ncols=max(1, int(size[0] / (0.6 + 0.07 * longest))) if wide else 1,
        frameon=False,
    )
    with storage.whole(out_png) as file:
        figure.savefig(file, format="png")


def class_table(group: zarr.Group) -> ClassTable:
    """Return the class table of a map group.

    Raises:
        ValueError: `class` has no flag_values.
    """
    array = layer(group, "class")
    table = from_attributes(dict(array.attrs), f"map {group.store_path}")
    if table is None:
        raise ValueError(f"map {group.store_path}: class must have flag_values, found none")
    return table


def class_image(codes: Array, table: ClassTable) -> Array:
    """Return codes (y, x) in the colours of the table as uint8 RGBA (y, x, 4); others clear."""
    known = np.array((0, *table.codes), dtype=np.int64)
    colors = np.array(
        [(0, 0, 0, 0), *((*bytes.fromhex(color[1:]), 255) for color in table.colors)],
        dtype=np.uint8,
    )
    at = np.minimum(np.searchsorted(known, codes), known.size - 1)
    return np.asarray(colors[np.where(known[at] == codes, at, 0)])


def _write_cog(
    source: ZarrArray, scene: Scene, path: Path, dtype: np.dtype[Any], table: ClassTable | None
) -> None:
    """Copy (y, x) row of chunks by row of chunks into a tiled GeoTIFF, then into a COG."""
    height, width = source.shape
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": dtype,
        "crs": CRS.from_wkt(scene.crs_wkt) if scene.crs_wkt else None,
        "transform": Affine(*scene.transform) if scene.transform else None,
        "nodata": 0 if table is not None else float("nan"),
        "tiled": True,
        "bigtiff": "IF_SAFER",
    }
    options = {"compress": "DEFLATE", "bigtiff": "IF_SAFER", "overview_resampling": "AVERAGE"}
    options["num_threads"] = "ALL_CPUS"
    if table is not None:
        options["overview_resampling"] = "MODE"
    elif dtype.kind == "f":
        options["predictor"] = "FLOATING_POINT"
    cache = rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES)  # rasterio counts bytes
    with storage.workshop(path) as folder, warnings.catch_warnings(), cache:
        # A scene need not say where it lies; neither does its map then.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        plain, cog = folder / "plain.tif", folder / path.name
        with rasterio.open(plain, "w", **profile) as target:
            for y in range(0, height, source.chunks[0]):
                rows = np.asarray(source[y : y + source.chunks[0]]).astype(dtype, copy=False)
                target.write(rows, 1, window=Window(0, y, width, rows.shape[0]))
            target.set_band_description(1, str(source.basename))
            if table is not None:
                names = dict(zip(map(str, table.codes), table.names, strict=True))
                target.update_tags(1, class_names=json.dumps(names))
                target.write_colormap(1, _colormap(table))
        rasterio.shutil.copy(plain, cog, driver="COG", **options)


def _colormap(table: ClassTable) -> dict[int, tuple[int, ...]]:
    colors = zip(table.codes, table.colors, strict=True)
    return {0: (0, 0, 0, 0)} | {code: (*bytes.fromhex(c[1:]), 255) for code, c in colors}


def _write_category_names(path: Path, table: ClassTable) -> None:
    """Write GDAL's side file with a name for every value from 0 up to the largest code."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    listed = ElementTree.SubElement(band, "CategoryNames")
    names = dict(zip(table.codes, table.names, strict=True))
    for value in range(max(table.codes, default=0) + 1):
        ElementTree.SubElement(listed, "Category").text = names.get(value, "")
    with storage.whole(path) as file:
        ElementTree.ElementTree(root).write(file, encoding="utf-8")
