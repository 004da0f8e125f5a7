"""Wavelengths in whatever unit a source states."""

import numpy as np
import pytest

from pipeline.nanometres import nanometres


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        ("m", [4.5e-7, 5e-7, 9e-7], (450, 500, 900)),
        ("Angstroms", [4000, 5000, 9000], (400, 500, 900)),
        ("Nanometers", [0.4, 0.5, 0.9], (400, 500, 900)),
        ("Micrometers", [400, 500, 900], (400, 500, 900)),
        ("", [0.4, 0.5, 2.4], (400, 500, 2400)),
        ("Unknown", [0, 500, 900], (0, 500, 900)),
        ("Wavenumber", [25000, 20000, 11111], None),
        ("Index", [1, 2, 200], None),
        ("nm", [1, 2, 200], None),
    ],
)
def test_units_of_wavelengths(unit: str, values: list[float], expected: tuple[float, ...] | None) -> None:
    found, notes = nanometres(np.array(values), unit)
    assert found == (None if expected is None else pytest.approx(expected))
    assert ("not understood; give --wavelengths" in " ".join(notes)) == (expected is None)
