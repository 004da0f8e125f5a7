"""Polygons and points with a class, from GeoPackage, GeoJSON, Shapefile or FlatGeobuf."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from pipeline.errors import UserError
from pipeline.georeference import parse_crs

Array = np.ndarray[Any, np.dtype[Any]]
Bounds = tuple[float, float, float, float]

# Names of class columns, most telling first; compared without case and underscores.
_CLASS_NAMES = (
    "class", "classname", "classid", "classcode", "label", "labels", "lcclass", "landcover", "landuse",
    "category", "species", "code", "type", "name", "value", "dn", "gt", "gridcode",
)  # fmt: skip
_NO_CLASS = {
    "fid",
    "id",
    "objectid",
    "gid",
    "ogcfid",
    "shapeleng",
    "shapelength",
    "shapearea",
    "area",
    "length",
}
_SHAPES = {"Polygon", "MultiPolygon", "Point", "MultiPoint"}
_UNREADABLE = (DataSourceError, DataLayerError, ShapelyError, OSError, ValueError, UnicodeDecodeError)


@dataclass(frozen=True)
class Layer:
    """What a layer of a vector file holds; ``columns`` maps names to types."""

    name: str
    features: int
    geometry: str
    crs_wkt: str | None
    columns: dict[str, str]


@dataclass(frozen=True)
class Features:
    """Shapes in the CRS asked for, each with its class.

    Attributes:
        geometry: shapely polygons or points.
        value: The class of each: int64 codes, or text (object).
        column: Where the classes stand.
        texts: All texts of the column in the whole layer, in order; none where the classes are codes.
        unclassed: Features left out because they have no class.
        elsewhere: Features of the layer outside of the bounds, or without a shape.
        notes: What the reader found odd.
    """

    geometry: Array
    value: Array
    column: str
    texts: tuple[str, ...]
    unclassed: int
    elsewhere: int
    notes: tuple[str, ...]


def layers(path: Path) -> list[Layer]:
    """Return the layers of a vector file that have shapes; UserError when it cannot be read."""
    try:
        named = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        infos = [(name, pyogrio.read_info(path, layer=name, force_feature_count=True)) for name in named]
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot read it as a vector file: {error}") from error
    return [
        Layer(
            name=name,
            features=int(info["features"]),
            geometry=str(info["geometry_type"]),
            crs_wkt=parse_crs(str(info["crs"]), str(path)).to_wkt() if info["crs"] else None,
            columns=dict(zip(map(str, info["fields"]), map(str, info["dtypes"]), strict=True)),
        )
        for name, info in infos
    ]


def choose_layer(path: Path, name: str | None) -> Layer:
    """Return the layer named, else the only one; UserError lists what is there."""
    found = layers(path)
    listed = ", ".join(f"{layer.name} ({layer.features} features)" for layer in found) or "none"
    fitting = [layer for layer in found if name in (None, layer.name)]
    if name is not None and not fitting:
        raise UserError(f"{path}: --labels-layer {name}: no such layer; found {listed}")
    if len(fitting) != 1:
        raise UserError(f"{path}: expected one layer with shapes, found {listed}; choose with --labels-layer")
    return fitting[0]


def class_column(path: Path, layer: Layer, name: str | None) -> str:
    """Return the column of the classes: the one named, else the one whose name says so, else the only one.

    Raises:
        UserError: It is not there, or several could be meant; the message lists them.
    """
    listed = ", ".join(f"{column} ({dtype})" for column, dtype in layer.columns.items()) or "none"
    if name is not None:
        if name not in layer.columns:
            raise UserError(f"{path}: --labels-column {name}: no such column; found {listed}")
        return name
    plain = {column.lower().replace("_", "").replace(" ", ""): column for column in layer.columns}
    for known in _CLASS_NAMES:
        if known in plain:
            return plain[known]
    others = [column for key, column in plain.items() if key not in _NO_CLASS]
    if len(others) != 1:
        raise UserError(
            f"{path}: expected a column with the classes, found {listed}; choose one with --labels-column"
        )
    return others[0]


def read_features(
    path: Path, layer: Layer, column: str, crs: str | None, target_wkt: str, bounds: Bounds
) -> Features:
    """Read the features that touch the bounds; the others are never loaded.

    Args:
        path: The vector file.
        layer: The layer of it to read.
        column: The column of the classes.
        crs: The CRS of the file where it names none.
        target_wkt: The CRS of the result and of ``bounds``.
        bounds: left, bottom, right, top of the scene.

    Raises:
        UserError: No CRS or two of them, other shapes than polygons and points, or no usable class.
    """
    own = _layer_crs(path, layer, crs)
    target = pyproj.CRS.from_wkt(target_wkt)
    try:
        to_own = pyproj.Transformer.from_crs(target, own, always_xy=True)
    except ProjError:
        raise UserError(
            f"{path}: its CRS, {own.name}, and that of the scene, {target.name}, have no way into each other"
        ) from None
    box = to_own.transform_bounds(*bounds, densify_pts=21)
    if not np.isfinite(box).all():
        raise UserError(f"{path}: the scene lies outside of where its CRS, {own.name}, is defined")
    # A margin, because straight edges of the scene are curves in another CRS.
    margin = 0.01 * max(box[2] - box[0], box[3] - box[1])
    wide = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
    # A box across the antimeridian has its left to the right of its right: read everything.
    frame, notes = _read(path, layer.name, column, wide if box[0] <= box[2] else None)
    frame = geopandas.GeoDataFrame(frame).set_crs(own, allow_override=True)
    shaped = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    wrong = sorted(set(shaped.geom_type) - _SHAPES)
    if wrong:
        raise UserError(f"{path}: expected polygons or points, found {', '.join(wrong)}; buffer or drop them")
    classed = shaped[shaped[column].notna() & (shaped[column].astype(str).str.strip() != "")]
    moved = classed.geometry.to_crs(target)
    values, texts = _values(path, layer.name, column, classed[column])
    left, bottom, right, top = bounds
    edges = moved.bounds.to_numpy().reshape(-1, 4)
    touching = (edges[:, 2] >= left) & (edges[:, 0] <= right) & (edges[:, 3] >= bottom) & (edges[:, 1] <= top)
    return Features(
        geometry=moved.to_numpy()[touching],
        value=values[touching],
        column=column,
        texts=texts,
        unclassed=len(shaped) - len(classed),
        elsewhere=layer.features - len(shaped) + int((~touching).sum()),
        notes=notes,
    )


def _values(path: Path, layer: str, name: str, column: Any) -> tuple[Array, tuple[str, ...]]:
    """Return the classes of features, and where they are text all that stand in the layer's column.

    So a text has the same code in whichever image its features are put.
    """
    where = f"{path}: column {name}"
    if not pd.api.types.is_string_dtype(column.dtype):
        return class_values(column, where), ()
    try:
        whole = pyogrio.read_dataframe(path, layer=layer, columns=[name], read_geometry=False)[name]
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot read its features: {error}") from error
    stated = whole.dropna().astype(str).str.strip()
    everywhere = class_values(stated[stated != ""], where)
    if everywhere.dtype.kind == "i":
        return class_values(column, where), ()
    return np.asarray(column.astype(str).str.strip(), object), tuple(sorted(set(everywhere.tolist())))


def class_values(column: Any, where: str) -> Array:
    """Return the classes as int64 codes where all are whole numbers, else as text.

    Raises:
        UserError: Neither numbers nor text, or numbers with a fraction or below 0.
    """
    if column.dtype.kind in "iuf" and column.dtype.kind != "b":
        numbers = column.to_numpy(np.float64)
    elif column.dtype.kind == "b" or not pd.api.types.is_string_dtype(column.dtype):
        raise UserError(f"{where}: expected classes as whole numbers or text, found {column.dtype}")
    else:
        text = column.astype(str).str.strip()
        if not text.str.fullmatch(r"\d{1,9}").all() or text.empty:
            return np.asarray(text, object)
        numbers = text.to_numpy().astype(np.float64)
    wrong = numbers[(numbers != np.floor(numbers)) | (numbers < 0)]
    if len(wrong):
        raise UserError(
            f"{where}: labels must be whole numbers from 0 (unlabelled) upwards, found {wrong[0]:g}"
        )
    codes: Array = numbers.astype(np.int64)
    return codes


def _read(path: Path, layer: str, column: str, box: Bounds | None) -> tuple[Any, tuple[str, ...]]:
    """Return the features that touch a box, and the warnings of the reader."""
    try:
        with warnings.catch_warnings(record=True) as odd:
            warnings.simplefilter("always")
            frame = pyogrio.read_dataframe(path, layer=layer, columns=[column], force_2d=True, bbox=box)
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot read its features: {error}") from error
    return frame, tuple(sorted({str(one.message) for one in odd}))


def _layer_crs(path: Path, layer: Layer, option: str | None) -> pyproj.CRS:
    """Return the CRS of a layer: its own or the option's, which must not disagree."""
    given = parse_crs(option, "--labels-crs") if option is not None else None
    if layer.crs_wkt is None and given is None:
        raise UserError(f"{path}: states no CRS (a Shapefile has it in its .prj); name it with --labels-crs")
    if layer.crs_wkt is None:
        assert given is not None
        return given
    own = pyproj.CRS.from_wkt(layer.crs_wkt)
    if given is not None and not own.equals(given, ignore_axis_order=True):
        raise UserError(
            f"{path}: geographic conflict: --labels-crs says {given.name}, the file {own.name}; "
            "drop the option"
        )
    return own
