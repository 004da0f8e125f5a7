"""Labels of any source, as codes on the grid of an image, with their classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import ingest_labels, ingest_options, ingest_warp
from pipeline.classes import ClassTable, table_of
from pipeline.errors import UserError
from pipeline.georeference import coarser, parse_crs
from pipeline.ingest_labels import ClassFile
from pipeline.ingest_options import Options
from pipeline.ingest_rasterise import grid_bounds, rasterise
from pipeline.ingest_read import format_of, read_labels
from pipeline.sources import vector
from pipeline.sources.layout import Cube, LabelMap

Array = np.ndarray[Any, np.dtype[Any]]


def scene_labels(path: Path, cube: Cube, options: Options) -> tuple[Any, ClassTable | None]:
    """Return the labels on the grid of the cube, as a dask array, and their classes.

    Raises:
        UserError: The labels do not fit the cube, the class file or the options.
    """
    listed = ingest_labels.read_class_file(options.classes) if options.classes is not None else None
    if format_of(path) == "vector":
        return _from_shapes(path, cube, options, listed)
    found = read_labels(path, options)
    if cube.flipped and found.transform is None:
        click.echo(f"{path.name}: has no place of its own, and was turned round as the image")
        found = replace(found, data=found.data[::-1])
    if options.warp_labels:
        found = ingest_warp.labels_on_grid(found, cube, str(path))
    k = ingest_labels.refinement(found.data.shape, cube.data.shape[1:], str(path))
    _check_place(found, cube, k, path)
    labels = ingest_labels.to_codes(found.data, found.fill, str(path))
    ingest_labels.check_some(labels, str(path))
    table = found.classes
    if listed is not None:
        labels = ingest_labels.recode(labels, listed, options.drop_unlisted, str(path))
        table = listed.table
    elif table is not None:
        table = ingest_labels.with_unnamed(table, labels)
    return ingest_labels.pure_labels(labels, k, options.purity), table


def _from_shapes(
    path: Path, cube: Cube, options: Options, listed: ClassFile | None
) -> tuple[Any, ClassTable | None]:
    """Return the labels that polygons or points give."""
    if cube.crs_wkt is None or cube.transform is None:
        raise UserError(
            f"{path}: polygons and points need an image with a place on Earth, found none; "
            "give --crs and --pixel-size with --origin"
        )
    height, width = cube.data.shape[1:]
    layer = vector.choose_layer(path, options.labels_layer)
    column = vector.class_column(path, layer, options.labels_column)
    bounds = grid_bounds(cube.transform, height, width)
    found = vector.read_features(path, layer, column, options.labels_crs, cube.crs_wkt, bounds)
    if not len(found.geometry):
        raise UserError(
            f"{path}: expected features inside of the image, {_box(bounds)} in its CRS, found none of "
            f"{layer.features}; check the CRS of both with --describe"
        )
    codes, table, unlisted = _codes(found, listed, options, f"{path}: column {column}")
    labels, contested = rasterise(found.geometry, codes, cube.transform, (height, width), options.all_touched)
    if codes.any():
        ingest_labels.check_some(labels, f"{path}: {len(codes)} features inside of the image")
    click.echo(f"labels: {len(found.geometry)} features of {path.name}, classes from column {column}")
    for note in found.notes:
        click.echo(f"{path.name}: {note}")
    for count, why in (
        (found.elsewhere, "features outside of the image or without a shape"),
        (found.unclassed, "features without a class"),
        (unlisted, "features whose class the class file does not list"),
        (contested, "pixels where features of different classes meet"),
    ):
        if count:
            click.echo(f"left out: {count} {why}")
    return labels, table


def _codes(
    features: vector.Features, listed: ClassFile | None, options: Options, where: str
) -> tuple[Array, ClassTable | None, int]:
    """Return the code of each feature, the classes, and how many features no class claims.

    Without a class file, the texts of the layer get the codes 1, 2, … in alphabetical order.

    Raises:
        UserError: The class file lacks classes that the features name.
    """
    value = features.value
    if listed is None and value.dtype.kind == "i":
        return value, None, 0
    if listed is None:
        code_of_text = {text: code for code, text in enumerate(features.texts, 1)}
        table = table_of((code, text, None) for text, code in code_of_text.items())
        return np.array([code_of_text[text] for text in value], np.int64), table, 0
    found = sorted(set(value.tolist()))
    code_of: dict[Any, int] = dict(listed.code_of_source if value.dtype.kind == "i" else listed.code_of_text)
    code_of.setdefault(0, 0)
    unlisted = [one for one in found if one not in code_of]
    if unlisted and not options.drop_unlisted:
        raise UserError(
            f"{where}: the class file does not list {unlisted}; add them, or drop their labels with "
            "--drop-unlisted"
        )
    codes = np.array([code_of.get(one, 0) for one in value.tolist()], np.int64)
    return codes, listed.table, int(sum(one not in code_of for one in value.tolist()))


def _check_place(labels: LabelMap, cube: Cube, k: int, path: Path) -> None:
    """Raise UserError when labels and cube both have a place on Earth and it differs."""
    advice = "reproject or cut the labels to the grid of the image, or give --warp-labels"
    if labels.crs_wkt and cube.crs_wkt:
        own, image = parse_crs(labels.crs_wkt, str(path)), parse_crs(cube.crs_wkt, "the image")
        if not ingest_options.same_crs(own, image):
            raise UserError(
                f"{path}: geographic conflict: expected the CRS of the image, {image.name}, "
                f"found {own.name}; {advice}"
            )
    if labels.transform and cube.transform:
        grid = coarser(labels.transform, k)
        if not ingest_options.same_transform(cube.transform, grid, cube.data.shape[1:]):
            raise UserError(
                f"{path}: geographic conflict: expected labels that, {k} to a side of a pixel, "
                f"give the transform {cube.transform} of the image, found {grid}; {advice}"
            )


def _box(bounds: tuple[float, float, float, float]) -> str:
    left, bottom, right, top = bounds
    return f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}"
