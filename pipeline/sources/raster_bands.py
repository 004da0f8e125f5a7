"""What a GDAL raster says of its bands: packing, wavelengths, which ones are bad."""

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pipeline.errors import UserError
from pipeline.nanometres import NM_PER_UNIT, nanometres
from pipeline.sources.layout import bad_bands

_NUMBER = r"\d+(?:\.\d+)?"
_WITH_UNIT = re.compile(
    rf"({_NUMBER})[ _]*(nm|nanomet(?:er|re)s?|um|µm|μm|microns?|micromet(?:er|re)s?)\b", re.I
)
# Optical wavelengths, in nm and in micrometres, where a band description gives a bare number.
_PLAUSIBLE = ((300.0, 2600.0, 1.0), (0.3, 2.6, 1000.0))


def check_size(source: Any, path: Path) -> None:
    """Raise UserError for an ENVI file shorter than its header says: GDAL reads zeros from there on."""
    header = source.tags(ns="ENVI")
    if source.driver != "ENVI" or header.get("file_compression", "0").strip() not in ("", "0"):
        return
    pixels, offset = source.count * source.height * source.width, header.get("header_offset", "0") or "0"
    if not offset.strip().isdecimal():
        raise UserError(f"{path}: header offset must be a whole number of bytes, found {offset!r}")
    expected = int(offset) + pixels * np.dtype(source.dtypes[0]).itemsize
    found = path.stat().st_size
    if found < expected:
        raise UserError(
            f"{path}: expected {expected} bytes as its header says, found {found}; the file is cut off, or "
            "samples, lines, bands or data type in the header are wrong"
        )


def packing(source: Any, path: Path) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Return the scale and offset of all bands, None where they change nothing, and what to say.

    ENVI's reflectance scale factor divides: reflectance = stored / factor.

    Raises:
        UserError: Bands have different ones, or the factor is no number above 0.
    """
    scales, offsets = set(source.scales), set(source.offsets)
    if len(scales) > 1 or len(offsets) > 1:
        raise UserError(
            f"{path}: all bands must share one scale and offset, found scales {sorted(scales)} "
            f"and offsets {sorted(offsets)}; unify them first (gdal_translate -unscale)"
        )
    scale, offset = scales.pop(), offsets.pop()
    text = source.tags(ns="ENVI").get("reflectance_scale_factor")
    if scale != 1 or text is None:
        return (scale if scale != 1 else None), (offset if offset != 0 else None), ()
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise UserError(f"{path}: reflectance scale factor must be a number above 0, found {text!r}")
    note = f"reflectance scale factor {factor:g}: reflectance = stored / {factor:g}"
    return (1 / factor if factor != 1 else None), (offset if offset != 0 else None), (note,)


def wavelengths(source: Any, path: Path) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Return the wavelengths in nm from tags, descriptions or EnMAP's XML, and what to say of them.

    None unless every band has one.
    """
    tagged = [_tagged(source, band) for band in range(1, source.count + 1)]
    known = [found for found in tagged if found is not None]
    if len(known) == source.count and len(units := {unit for _, unit in known}) == 1:
        return nanometres(np.array([value for value, _ in known]), units.pop())
    texts = [text or "" for text in source.descriptions]
    return described(texts) or _enmap(path, source.count), ()


def described(texts: list[str]) -> tuple[float, ...] | None:
    """Return the wavelengths in nm that band descriptions hold, None unless all of them do.

    Such as "Band 12 (478.3 nm)" or "0.4783 um"; or, where all are plausible and none only counts
    the bands, a bare number at the end: "Band_478.3".
    """
    units = [_WITH_UNIT.search(text) for text in texts]
    found = [float(m[1]) * NM_PER_UNIT[m[2].lower()] for m in units if m is not None]
    if texts and len(found) == len(texts):
        return tuple(round(nm, 6) for nm in found)
    bare = [re.findall(_NUMBER, text) for text in texts]
    numbers = [float(words[-1]) for words in bare if words]
    if not texts or len(numbers) != len(texts) or len(set(numbers)) != len(numbers):
        return None
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    for low, high, factor in _PLAUSIBLE:
        if low <= min(numbers) and max(numbers) <= high and steps != {1.0}:
            return tuple(round(number * factor, 6) for number in numbers)
    return None


def _enmap(path: Path, bands: int) -> tuple[float, ...] | None:
    """Return the wavelengths in the XML that EnMAP delivers beside an image; None where it does not fit."""
    prefix, found, _ = path.name.partition("SPECTRAL_IMAGE")
    beside = path.with_name(f"{prefix}METADATA.XML")
    if not found or not beside.is_file():
        return None
    try:
        listed = ElementTree.parse(beside).iterfind(".//bandCharacterisation/bandID")
        nm = {int(one.attrib["number"]): float(one.findtext("wavelengthCenterOfBand", "")) for one in listed}
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{beside}: cannot read the wavelengths: {error}; give --wavelengths") from error
    # A part of the bands cannot be told from the numbers alone.
    return tuple(nm[band] for band in sorted(nm)) if len(nm) == bands else None


def listed_bad(source: Any) -> tuple[int, ...]:
    """Return the bands, counted from 0, that ENVI's bbl calls bad; none where it does not fit."""
    text = source.tags(ns="ENVI").get("bbl")
    if text is None:
        return ()
    try:
        flags = [float(word) for word in text.strip("{} \n").split(",")]
    except ValueError:
        flags = []
    if len(flags) != source.count:
        raise UserError(
            f"{source.name}: bbl must hold 1 (good) or 0 (bad) for each of the {source.count} bands, "
            f"found {len(flags) or repr(text[:40])}; correct the header"
        )
    return bad_bands(flags)


def _tagged(source: Any, band: int) -> tuple[float, str] | None:
    """Return the wavelength and its unit that the tags of a band state."""
    tags = {key.lower(): value for key, value in source.tags(band).items()}
    unit = tags.get("wavelength_units", tags.get("wavelength_unit", ""))
    micrometres = source.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
    try:
        if "wavelength" in tags:
            return float(tags["wavelength"]), unit
        return (float(micrometres), "um") if micrometres is not None else None
    except ValueError:
        return None
