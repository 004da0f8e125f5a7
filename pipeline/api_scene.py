"""A scene from xarray: what a dataset holds, written as a Zarr scene."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray  # noqa: F401
import xarray as xr

from pipeline import storage
from pipeline.classes import ClassTable, from_attributes
from pipeline.errors import UserError
from pipeline.georeference import Transform, parse_transform, plain_index
from pipeline.scene import open_scene, write_scene
from pipeline.scene_arrays import NM_PER_UNIT

_BANDS = ("band", "wavelength")
_REGULAR = 1e-3  # how far coordinates may stray from a regular grid, pixels


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
    there = path.exists()
    target = path.with_name(f"{path.name}.{os.getpid()}.new") if there else path
    reflectance = _reflectance(dataset)
    codes, classes = _labels(dataset, reflectance, labels)
    packing = {
        key: reflectance.attrs[name]
        for key, name in (
            ("scale_factor", "scale_factor"), ("add_offset", "add_offset"), ("fill_value", "_FillValue"),
        )
        if name in reflectance.attrs
    }  # fmt: skip
    try:
        write_scene(
            target,
            reflectance.data,
            wavelength_nm=_wavelength_nm(dataset, reflectance),
            crs=dataset.rio.crs.to_wkt() if dataset.rio.crs else None,
            transform=_transform(dataset),
            labels=codes,
            classes=classes,
            **packing,
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
    if ours.fingerprint() != theirs.fingerprint() or ours.label_fingerprint() != theirs.label_fingerprint():
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
    return labels.transpose("y", "x").data, from_attributes(attributes, "labels")


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
        raise UserError(f"dataset: wavelength must be in nm or micrometres, found the unit {unit!r}")
    return [float(value) * NM_PER_UNIT[unit.lower()] for value in found.values]


def _transform(dataset: xr.Dataset) -> Transform | None:
    """From y and x where they are regular; otherwise the GeoTransform of spatial_ref, if there is one."""
    axes = [_regular(dataset[axis]) if axis in dataset.coords else None for axis in ("y", "x")]
    if axes[0] is not None and axes[1] is not None:
        (f, e), (c, a) = axes[0], axes[1]
        return a, 0.0, c, 0.0, e, f
    mapping = dataset.coords.get(dataset.rio.grid_mapping)
    placed = any(a in dataset.coords and not plain_index(dataset[a].values) for a in "yx")
    if mapping is not None and "GeoTransform" in mapping.attrs and not placed:
        return parse_transform(mapping.attrs["GeoTransform"], "dataset")
    return None


def _regular(axis: xr.DataArray) -> tuple[float, float] | None:
    """(edge of the first pixel, step) of regular pixel centres; None for others and for plain indices."""
    if axis.ndim != 1 or axis.size < 2 or axis.dtype.kind not in "iuf":
        return None
    centres = axis.values.astype(np.float64)
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    index = np.arange(len(centres))
    if step == 0 or np.abs((centres - centres[0]) / step - index).max() > _REGULAR:
        return None
    return None if np.array_equal(centres, index) else (float(centres[0]) - step / 2, step)
