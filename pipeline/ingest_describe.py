"""What is in a source file, for people who want to know before they make a scene."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyogrio

from pipeline.errors import UserError
from pipeline.georeference import parse_crs
from pipeline.ingest_bands import ranges
from pipeline.ingest_options import Options
from pipeline.ingest_rasterise import grid_bounds
from pipeline.ingest_read import format_of, read_cube, read_labels
from pipeline.sources import matlab, netcdf, raster, vector, zarr_store
from pipeline.sources.layout import Cube

# Pixels to a side of the part whose values are looked at.
_SAMPLE = 128
_MOST_CLASSES = 40


def describe(path: Path, options: Options) -> str:
    """Return lines about a source: what it holds and how ingest would read it.

    Reads metadata and one small window, and of vector files the column of the classes.

    Raises:
        UserError: The file cannot be read, or holds neither image nor labels.
    """
    kind = format_of(path)
    if kind == "vector":
        return "\n".join([f"{path}", *_vector(path, options)])
    inside = _arrays(path, kind)
    try:
        cube = read_cube(path, options)
        # One band of whole numbers is hardly an image of a spectrometer.
        flat = cube.data.shape[0] == 1 and cube.data.dtype.kind in "iu"
        found = _labels(path, options) if flat else _image(cube)
    except UserError as no_cube:
        try:
            found = _labels(path, options)
        except UserError:
            if not inside:
                raise no_cube from None
            found = [f"  image        none taken: {no_cube}"]
    return "\n".join([f"{path}", f"  format       {_format(path, kind)}", *inside, *found])


def _image(cube: Cube) -> list[str]:
    """Return lines about an image."""
    bands, height, width = cube.data.shape
    lines = [
        f"  image        {height} x {width} pixels (y, x), {bands} bands, {cube.data.dtype}",
        f"  in memory    {cube.data.nbytes / 1e9:.3g} GB; it is read block by block",
        f"  wavelengths  {_wavelengths(cube.wavelength_nm)}",
        f"  bad bands    {ranges(list(cube.bad_bands)) or 'none listed'}",
        f"  no data      {'none stated' if cube.fill is None else f'{cube.fill:g}'}",
        f"  packing      reflectance = stored * {cube.scale_factor or 1:g} + {cube.add_offset or 0:g}",
        f"  values       {_sample(cube)}",
        *_place(cube.crs_wkt, cube.transform, (height, width)),
    ]
    return [*lines, *(f"  note         {note}" for note in cube.notes)]


def _labels(path: Path, options: Options) -> list[str]:
    """Return lines about a label map."""
    found = read_labels(path, options)
    corner = np.asarray(found.data[:2048, :2048].compute(scheduler="synchronous"))
    codes, counts = np.unique(corner, return_counts=True)
    names = dict(zip(found.classes.codes, found.classes.names, strict=True)) if found.classes else {}
    lines = [
        f"  label map    {found.data.shape[0]} x {found.data.shape[1]} pixels (y, x), {found.data.dtype}"
    ]
    for code, count in list(zip(codes.tolist(), counts.tolist(), strict=True))[:_MOST_CLASSES]:
        lines.append(f"  {code!s:>6}  {names.get(code, ''):<32} {count:>10}")
    if corner.shape != found.data.shape:
        lines.append(f"  counted in the first {corner.shape[0]} x {corner.shape[1]} pixels")
    return [*lines, *_place(found.crs_wkt, found.transform, found.data.shape)]


def _vector(path: Path, options: Options) -> list[str]:
    """Return lines about every layer of a vector file."""
    lines = ["  format       vector"]
    for layer in vector.layers(path):
        crs = parse_crs(layer.crs_wkt, str(path)).name if layer.crs_wkt else "none stated; give --labels-crs"
        lines += [
            f"  layer        {layer.name}: {layer.features} features, {layer.geometry}",
            f"  CRS          {crs}",
            f"  columns      {', '.join(f'{k} ({v})' for k, v in layer.columns.items()) or 'none'}",
        ]
        try:
            column = vector.class_column(path, layer, options.labels_column)
        except UserError:
            lines.append("  classes      in which column? choose with --labels-column")
            continue
        frame = pyogrio.read_dataframe(path, layer=layer.name, columns=[column], read_geometry=False)
        counts = pd.Series(frame[column]).value_counts(dropna=False).sort_index()
        lines.append(f"  classes      {len(counts)} in column {column}")
        lines += [f"  {value!s:>12}  {count:>10}" for value, count in counts.head(_MOST_CLASSES).items()]
    return lines


def _arrays(path: Path, kind: str) -> list[str]:
    """Return a line for each array of a file that can hold several."""
    if kind == "matlab":
        return [f"  array        {name} {shape}" for name, shape in sorted(matlab.shapes(path).items())]
    if kind not in ("netcdf", "zarr"):
        return []
    found = netcdf.arrays(path) if kind == "netcdf" else zarr_store.arrays(path)
    return [
        f"  array        {one.name} {one.array.shape} {one.array.dtype} {' '.join(one.dims)}".rstrip()
        for one in found.arrays
    ]


def _format(path: Path, kind: str) -> str:
    names = {"matlab": "MATLAB", "numpy": "NumPy", "zarr": "Zarr", "netcdf": "NetCDF or HDF5"}
    return names.get(kind) or raster.driver(path)


def _wavelengths(nm: tuple[float, ...] | None) -> str:
    if nm is None:
        return "none stated; give --wavelengths where they are known"
    order = "" if list(nm) == sorted(nm) else ", not in ascending order"
    return f"{min(nm):g} to {max(nm):g} nm{order}"


def _sample(cube: Cube) -> str:
    """Return the range of stored numbers in the middle of the image."""
    height, width = cube.data.shape[1:]
    y, x = max(0, (height - _SAMPLE) // 2), max(0, (width - _SAMPLE) // 2)
    part: Any = cube.data[:, y : y + _SAMPLE, x : x + _SAMPLE].compute(scheduler="synchronous")
    part = np.asarray(part)
    valid = part[np.isfinite(part) & (part != cube.fill)]
    if not len(valid):
        return "no data in the middle of the image"
    low, middle, high = np.percentile(valid, [0, 50, 100])
    return f"{low:g} to {high:g}, median {middle:g} (stored numbers, in the middle of the image)"


def _place(crs_wkt: str | None, transform: Any, shape: tuple[int, int]) -> list[str]:
    """Return lines about the place on Earth."""
    crs = parse_crs(crs_wkt, "the source").name if crs_wkt else "none stated; give --crs"
    lines = [f"  CRS          {crs}"]
    if transform is None:
        return [*lines, "  grid         none stated; give --pixel-size with --origin, or --transform"]
    a, b, _, d, e, _ = transform
    left, bottom, right, top = grid_bounds(transform, *shape)
    turned = " (rotated)" if b or d else ""
    return [
        *lines,
        f"  pixel size   {np.hypot(a, d):.10g} x {np.hypot(b, e):.10g}{turned}",
        f"  bounds       x {left:.10g} to {right:.10g}, y {bottom:.10g} to {top:.10g}",
    ]
