"""Arrays with named dimensions (NetCDF, HDF5, Zarr): which is the image, and where are its axes."""

from typing import Any

import numpy as np

from pipeline.classes import from_attributes
from pipeline.errors import UserError
from pipeline.nanometres import nanometres
from pipeline.scene_arrays import one_fill
from pipeline.sources.arrays import Arrays, Stored, crs_of, plain_attributes, transform_of
from pipeline.sources.layout import Cube, LabelMap, bad_bands, to_cube, to_labels

Array = np.ndarray[Any, np.dtype[Any]]

_BANDS = (
    "band",
    "bands",
    "wavelength",
    "wavelengths",
    "wavelength_3d",
    "nbands",
    "channel",
    "channels",
    "wl",
)
_ROWS = (
    "y",
    "lat",
    "latitude",
    "northing",
    "downtrack",
    "along_track",
    "number_of_lines",
    "line",
    "lines",
    "row",
    "rows",
)
_COLUMNS = (
    "x", "lon", "longitude", "easting", "crosstrack", "cross_track", "across_track", "pixels_per_line",
    "sample", "samples", "column", "columns", "col",
)  # fmt: skip
# Where several arrays have as many bands: these are images, not their uncertainty or quality.
_IMAGES = ("reflectance", "surface_reflectance", "rhos", "rrs", "radiance")
_GOOD = ("good_wavelengths", "good_bands", "good_wavelength", "bbl")


def read_cube(found: Arrays, variable: str | None, axes: str | None, chunk: int) -> Cube:
    """Return the image among the arrays of a file.

    Raises:
        UserError: There is none or more than one, or its axes cannot be told apart.
    """
    image = choose_image(found, variable, axes)
    order = image_axes(found, image, axes)
    where = f"{found.path}: {image.name}"
    data, fill = one_fill(to_cube(image.array, order, chunk, where), image.attributes)
    wavelength = wavelength_array(found, image, order)
    nm, odd = (None, ()) if wavelength is None else _nanometres(wavelength, where)
    good = found.named(*_GOOD, near=image)
    transform, flipped = transform_of(found, image, order)
    return Cube(
        data=data[:, ::-1] if flipped else data,
        fill=fill,
        scale_factor=_number(image, "scale_factor", 1),
        add_offset=_number(image, "add_offset", 0),
        wavelength_nm=nm,
        crs_wkt=crs_of(found, image),
        transform=transform,
        bad_bands=bad_bands(good.array[:]) if good is not None and good.array.shape == data.shape[:1] else (),
        notes=(*odd, *(("its rows run northwards and were turned round",) if flipped else ())),
        flipped=flipped,
        labelled=found.named("labels", near=image) is not None,
    )


def read_labels(found: Arrays, variable: str | None, axes: str) -> LabelMap:
    """Return the label map among the arrays of a file; ``axes`` counts where names say nothing.

    Raises:
        UserError: There is no 2-D integer array, or more than one.
    """
    flat = [a for a in found.arrays if a.array.ndim == 2 and a.array.dtype.kind in "iu"]
    chosen = _named_or_only(
        found, variable, flat, "--labels-variable", "2-D array of whole numbers", ("labels",)
    )
    letters = _known_axes(found, chosen)
    order = letters if set(letters) == {"y", "x"} else axes
    where = f"{found.path}: {chosen.name}"
    transform, flipped = transform_of(found, chosen, order)
    data, fill = one_fill(to_labels(chosen.array, order, where), chosen.attributes)
    return LabelMap(
        data=data[::-1] if flipped else data,
        fill=fill,
        classes=from_attributes(plain_attributes(chosen.attributes), where),
        crs_wkt=crs_of(found, chosen),
        transform=transform,
    )


def choose_image(found: Arrays, variable: str | None, axes: str | None) -> Stored:
    """Return the array named, else the 3-D one with most bands; UserError lists what is there."""
    cubes = [
        a
        for a in found.arrays
        if a.array.ndim == 3 and a.array.dtype.kind in "iuf" and 0 not in a.array.shape
    ]
    if variable is None and len(cubes) > 1:
        bands = {a.name: _band_count(found, a, axes) for a in cubes}
        cubes = [a for a in cubes if bands[a.name] == max(bands.values())]
    return _named_or_only(found, variable, cubes, "--variable", "3-D array of numbers", _IMAGES)


def image_axes(found: Arrays, image: Stored, axes: str | None) -> str:
    """Return the order of the axes of an image, such as "yxb".

    Raises:
        UserError: It is not 3-D, or neither names nor wavelengths nor ``axes`` tell.
    """
    where = f"{found.path}: {image.name}"
    if image.array.ndim != 3:
        raise UserError(f"{where}: expected 3 axes, found shape {image.array.shape}; name another variable")
    if axes is not None:
        return axes
    letters = _known_axes(found, image)
    for missing in ("b", "y", "x"):
        if letters.count("?") == 1 and missing not in letters:
            letters = letters.replace("?", missing)
    if letters.count("?") == 2 and "b" in letters:
        letters = letters.replace("?", "y", 1).replace("?", "x", 1)
    if sorted(letters) != ["b", "x", "y"]:
        named = ", ".join(image.dims) or "none"
        raise UserError(
            f"{where}: cannot tell its axes apart: shape {image.array.shape}, dimension names {named}; "
            "say their order with --axes, such as --axes yxb"
        )
    return letters


def wavelength_array(found: Arrays, image: Stored, axes: str) -> Stored | None:
    """Return the 1-D array with the wavelengths of an image, or None."""
    return _wavelengths(found, image.array.shape[axes.index("b")])


def _wavelengths(found: Arrays, bands: int | None = None) -> Stored | None:
    """Return the 1-D array of wavelengths, of this length where one is given."""
    for array in found.arrays:
        if array.array.ndim != 1 or array.array.dtype.kind not in "iuf" or array.short.lower() in _GOOD:
            continue
        telling = "wavelength" in (array.short + str(array.attributes.get("standard_name", ""))).lower()
        width = any(word in array.short.lower() for word in ("fwhm", "width", "index", "uncertainty"))
        if telling and not width and bands in (None, array.array.shape[0]):
            return array
    return None


def _known_axes(found: Arrays, stored: Stored) -> str:
    """Return a letter for each axis of an array: b, y, x, or ? where its name says nothing."""
    letters = []
    for i, size in enumerate(stored.array.shape):
        name = stored.dims[i].lower() if stored.dims else ""
        axis = found.named(stored.dims[i], near=stored) if stored.dims else None
        standard = str(axis.attributes.get("standard_name", "")) if axis is not None else ""
        wave = _wavelengths(found, size)
        if name in _ROWS or standard in ("projection_y_coordinate", "latitude"):
            letters.append("y")
        elif name in _COLUMNS or standard in ("projection_x_coordinate", "longitude"):
            letters.append("x")
        elif name in _BANDS or "wavelength" in standard or _same_dim(stored, i, wave):
            letters.append("b")
        else:
            letters.append("?")
    wave = _wavelengths(found)
    if wave is not None and not set(letters) & {"b"} and stored.array.shape.count(wave.array.shape[0]) == 1:
        letters[stored.array.shape.index(wave.array.shape[0])] = "b"
    return "".join(letters)


def _same_dim(stored: Stored, axis: int, wave: Stored | None) -> bool:
    return wave is not None and bool(stored.dims) and wave.dims == (stored.dims[axis],)


def _band_count(found: Arrays, array: Stored, axes: str | None) -> int:
    letters = axes or _known_axes(found, array)
    return array.array.shape[letters.index("b")] if "b" in letters else 0


def _named_or_only(
    found: Arrays, name: str | None, fitting: list[Stored], option: str, what: str, preferred: tuple[str, ...]
) -> Stored:
    """Return the array of this name, else the only fitting or preferred one."""
    listed = ", ".join(f"{a.name} {a.array.shape}" for a in found.arrays if a.array.ndim > 1) or "nothing"
    if name is not None:
        wanted = name.strip("/")
        known = [array for array in found.arrays if array.name == wanted]
        known = known or [array for array in found.arrays if array.short == wanted]
        if len(known) > 1:
            several = " and ".join(array.name for array in known)
            raise UserError(f"{found.path}: {option} {name}: found {several}; name the group too")
        if not known:
            raise UserError(f"{found.path}: {option} {name}: no such array; found {listed}")
        return known[0]
    images = [array for array in fitting if array.short.lower() in preferred]
    if len(fitting) != 1 and len(images) == 1:
        return images[0]
    if len(fitting) != 1:
        remedy = f"choose one with {option}" if fitting else "there is none to choose"
        raise UserError(f"{found.path}: expected one {what} to take, found {listed}; {remedy}")
    return fitting[0]


def _nanometres(wavelength: Stored, where: str) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Return wavelengths in nm, and what to say where they cannot be told."""
    values = np.asarray(wavelength.array[:], np.float64)
    unit = str(wavelength.attributes.get("units", wavelength.attributes.get("unit", "")))
    if not np.isfinite(values).all():
        raise UserError(
            f"{where}: expected a wavelength for each band, found some missing in {wavelength.name}"
        )
    return nanometres(values, unit)


def _number(stored: Stored, key: str, neutral: float) -> float | None:
    """Return a packing attribute, None where it changes nothing."""
    value = float(np.asarray(stored.attributes.get(key, neutral)).ravel()[0])
    return value if value != neutral else None
