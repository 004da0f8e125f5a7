"""A scene from xarray: what a dataset holds, written as a Zarr scene."""

import math
import os
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import rioxarray  # noqa: F401
import xarray as xr

from pipeline import storage
from pipeline.classes import ClassTable, from_attributes
from pipeline.errors import UserError
from pipeline.georeference import Floats, Transform, parse_transform, plain_index, regular, settled_transform
from pipeline.ingest_labels import to_codes
from pipeline.nanometres import NM_PER_UNIT
from pipeline.scene import open_scene, write_scene
from pipeline.scene_arrays import one_fill, packing, stated_fills

_BANDS = ("band", "wavelength")


def put_scene(source: xr.Dataset | str | Path, labels: Any, path: Path) -> Path:
    """Write a dataset, or a scene on disk with other labels, to ``path``; the same again is left alone.

    Args:
        source: As ``pipeline.api.classify`` takes it.
        labels: In place of the source's own, or None.
        path: ``scene.zarr`` in a run folder.

    Raises:
        UserError: The dataset is no scene, or another scene lies at ``path``.
    """
    dataset = source if isinstance(source, xr.Dataset) else _opened(str(source))
    storage.make_folder(path.parent, parents=True)
    there = storage.has_group(path)
    if not there:
        storage.remove(path)  # what an interrupted upload left
    target = path.with_name(f"{path.name}.{os.getpid()}.new") if there else path
    reflectance = _reflectance(dataset)
    dataset = _with_mapping(dataset)
    codes, classes = _labels(dataset, reflectance, labels)
    data, fill = one_fill(reflectance.data, reflectance.attrs)
    try:
        write_scene(
            target,
            data,
            wavelength_nm=_wavelength_nm(dataset, reflectance),
            crs=dataset.rio.crs.to_wkt() if dataset.rio.crs else None,
            transform=_transform(dataset),
            labels=codes,
            classes=classes,
            scale_factor=_number(reflectance, "scale_factor"),
            add_offset=_number(reflectance, "add_offset"),
            fill_value=fill,
        )
        if there:
            _same(target, path)
    finally:
        if there:
            storage.remove(target)
    return path


def _opened(url: str) -> xr.Dataset:
    open_scene(url)
    opened: xr.Dataset = xr.open_zarr(url, chunks={}, decode_coords="all", mask_and_scale=False)
    return opened


def _same(new: Path, old: Path) -> None:
    """Refuse to go on with another scene or other labels than the folder's."""
    ours, theirs = (open_scene(str(path)) for path in (new, old))
    same = ours.fingerprint() == theirs.fingerprint() and ours.same_reflectance(theirs)
    if not same or ours.label_fingerprint() != theirs.label_fingerprint():
        raise UserError(
            f"folder {old.parent}: holds a run of another scene or other labels; choose another folder"
        )


def _reflectance(dataset: xr.Dataset) -> xr.DataArray:
    """``reflectance`` as (band, y, x)."""
    if "reflectance" not in dataset:
        there = ", ".join(map(str, dataset.data_vars)) or "nothing"
        raise UserError(f"dataset: expected a variable reflectance, found {there}; rename it")
    array = dataset["reflectance"]
    for band in _BANDS:
        if set(array.dims) == {band, "y", "x"}:
            return array.transpose(band, "y", "x")
    shown = ", ".join(map(str, array.dims))
    raise UserError(f"dataset: reflectance must have the dimensions band, y, x, found {shown}; rename them")


def _with_mapping(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset whose grid mapping is a coordinate; as xarray opens files by itself it is a variable."""
    image = dataset["reflectance"]
    name = image.encoding.get("grid_mapping") or image.attrs.get("grid_mapping") or "spatial_ref"
    return dataset.set_coords(name) if name in dataset.data_vars else dataset


def _labels(dataset: xr.Dataset, like: xr.DataArray, labels: Any) -> tuple[Any, ClassTable | None]:
    """Codes (y, x) as an array, and the classes that their attributes name."""
    labels = dataset.get("labels") if labels is None else labels
    if labels is None:
        return None, None
    if not isinstance(labels, xr.DataArray):
        labels = xr.DataArray(labels, dims=("y", "x")) if np.ndim(labels) == 2 else xr.DataArray(labels)
    labels = labels.squeeze(drop=True) if labels.ndim > 2 else labels
    if set(labels.dims) != {"y", "x"}:
        raise UserError(f"labels: must have the dimensions y, x, found {', '.join(map(str, labels.dims))}")
    try:
        xr.align(labels, like, join="exact")
    except xr.AlignmentError as error:
        raise UserError(
            f"labels: must lie on the scene's grid, found {dict(labels.sizes)} on another; use "
            "labels.rio.reproject_match(scene)"
        ) from error
    attributes = dict(labels.attrs)
    if "flag_values" in attributes:
        attributes["flag_values"] = np.asarray(attributes["flag_values"]).ravel().tolist()
    codes = da.asarray(labels.transpose("y", "x").data)
    if codes.dtype.kind in "iuf":
        for fill in (*stated_fills(labels.attrs), None):
            codes = to_codes(codes, fill, "labels")
    return codes, from_attributes(attributes, "labels")


def _number(array: xr.DataArray, name: str) -> float | None:
    """A CF attribute that is one number, or None where it is absent."""
    return packing(array.attrs, name, math.nan, "dataset") if name in array.attrs else None


def _wavelength_nm(dataset: xr.Dataset, reflectance: xr.DataArray) -> list[float] | None:
    """The wavelength of each band in nm, or None when the dataset states none."""
    if "wavelength" not in dataset.variables:
        return None
    found = dataset["wavelength"]
    if found.dims != (reflectance.dims[0],) or found.dtype.kind not in "iuf":
        raise UserError(
            f"dataset: wavelength must be one number for each {reflectance.dims[0]}, found {found.dtype} "
            f"with the dimensions {', '.join(map(str, found.dims)) or 'none'}"
        )
    unit = str(found.attrs.get("units", "nm"))
    if unit.lower() not in NM_PER_UNIT:
        raise UserError(f"dataset: wavelength must be in nm, micrometres, m or angstroms, found {unit!r}")
    return [float(value) * NM_PER_UNIT[unit.lower()] for value in found.values]


def _transform(dataset: xr.Dataset) -> Transform | None:
    """From y and x where they are regular; otherwise the GeoTransform of spatial_ref, if there is one."""
    y, x = (_centres(dataset, axis) for axis in "yx")
    mapping = dataset.coords.get(dataset.rio.grid_mapping)
    text = mapping.attrs.get("GeoTransform") if mapping is not None else None
    stated = parse_transform(text, "dataset") if text is not None else None
    if y is not None and x is not None:
        return settled_transform(stated, y, x)
    placed = any(a in dataset.coords and not plain_index(dataset[a].values) for a in "yx")
    return None if placed else stated


def _centres(dataset: xr.Dataset, axis: str) -> Floats | None:
    """Pixel centres along an axis where they are evenly spread and more than a count of pixels."""
    if axis not in dataset.coords or dataset[axis].ndim != 1 or dataset[axis].dtype.kind not in "iuf":
        return None
    centres = dataset[axis].values.astype(np.float64)
    return None if regular(centres) is None or plain_index(centres) else centres
