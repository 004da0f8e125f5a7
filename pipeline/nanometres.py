"""Wavelengths in nanometres, whatever unit a source states."""

import numpy as np
from numpy.typing import NDArray

NM_PER_UNIT = {
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 1e3),
    **dict.fromkeys(("micrometre", "micrometres"), 1e3),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e9),
    **dict.fromkeys(("å", "angstrom", "angstroms"), 0.1),
}
_UNSTATED = ("", "unknown", "1", "none")
_PLAUSIBLE_NM = (100.0, 1e5)


def nanometres(values: NDArray[np.float64], unit: str) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Wavelengths that a source states, in nm, and a note; None where its unit is not understood.

    Some writers state no unit or a wrong one, so what gives no optical wavelength (100 nm to 0.1 mm) is
    tried as nm and as micrometres.
    """
    seen = values[values > 0]  # some products have 0 for a band that is not there
    stated, (low, high) = unit.strip().lower(), _PLAUSIBLE_NM
    known = [NM_PER_UNIT[stated]] if stated in NM_PER_UNIT else []
    for factor in [*known, 1.0, 1e3] if known or stated in _UNSTATED else ():
        if len(seen) and low <= seen.min() * factor and seen.max() * factor <= high:
            return tuple(round(float(value) * factor, 6) for value in values), ()
    shown = f"{values.min():g} to {values.max():g}"
    return None, (f"its wavelengths, {shown} in the unit {unit!r}, are not understood; give --wavelengths",)
