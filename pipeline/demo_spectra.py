"""Classes, surfaces and reflectance spectra of the synthetic city: formulas, nothing measured."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import ClassTable

Floats = NDArray[np.float32]

CLASSES = ClassTable(
    codes=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    names=(
        "street",
        "parking lot",
        "concrete",
        "bitumen roof",
        "tile roof",
        "metal roof",
        "lawn",
        "tree",
        "water",
        "bare soil",
    ),
    colors=(
        "#5b5b66",
        "#a58ac9",
        "#cfc8bd",
        "#3a3f52",
        "#c8553d",
        "#6fb7d6",
        "#9bd15a",
        "#2f7d3b",
        "#2456a6",
        "#c99a4b",
    ),
)


class Surface(NamedTuple):
    """What can be painted: two endmembers, their mean mixture and how much objects differ."""

    code: int
    first: str
    second: str
    mixture: float = 0.5
    mixture_spread: float = 0.15
    tone_spread: float = 0.09
    texture: float = 0.03


SURFACES = {
    "street": Surface(1, "asphalt", "worn asphalt", 0.40, 0.14),
    "lot": Surface(2, "asphalt", "worn asphalt", 0.55, 0.14),
    "light car": Surface(2, "metal", "concrete", 0.15, 0.15, 0.25),
    "dark car": Surface(2, "asphalt", "water", 0.4, 0.3, 0.25),
    "red car": Surface(2, "tile", "metal", 0.3, 0.2, 0.2),
    "concrete": Surface(3, "concrete", "worn asphalt", 0.10, 0.06),
    "bitumen": Surface(4, "asphalt", "bitumen", 0.45, 0.25, 0.14),
    "tile": Surface(5, "tile", "soil", 0.25, 0.15, 0.12, 0.06),
    "metal": Surface(6, "metal", "concrete", 0.15, 0.10, 0.14, 0.04),
    "lawn": Surface(7, "grass", "dry grass", 0.20, 0.08, 0.10, 0.05),
    "tree": Surface(8, "leaf", "grass", 0.35, 0.2, 0.12, 0.10),
    "water": Surface(9, "water", "turbid water", 0.4, 0.2, 0.08),
    "soil": Surface(10, "soil", "concrete", 0.2, 0.15, 0.10, 0.07),
}
SURFACE_ID = {name: number for number, name in enumerate(SURFACES)}


def spectra(wavelength_nm: NDArray[np.float64]) -> dict[str, Floats]:
    """Reflectance of the endmembers at the given wavelengths (nm): name -> (band,)."""
    w = wavelength_nm
    x = (w - 400.0) / 600.0

    def rise(centre: float, width: float) -> NDArray[np.float64]:
        return np.asarray(1.0 / (1.0 + np.exp(-(w - centre) / width)))

    def dip(centre: float, width: float, depth: float) -> NDArray[np.float64]:
        return np.asarray(1.0 - depth * np.exp(-0.5 * ((w - centre) / width) ** 2))

    # Chlorophyll absorbs at 450 and 670 nm, the red edge lies near 715 nm, leaf water at 970 nm.
    chlorophyll = dip(450, 45, 0.65) * dip(670, 30, 0.75)
    leaf = 0.10 * chlorophyll + 0.36 * rise(716, 13) * dip(970, 28, 0.10)
    grass = 0.11 * chlorophyll + 0.37 * rise(714, 13) * dip(970, 28, 0.07)
    dry_grass = 0.08 + 0.30 * x**0.8 * dip(670, 30, 0.10)
    # Ferric iron: steep rise between 530 and 620 nm and a broad band near 870 nm.
    tile = (0.06 + 0.24 * rise(585, 22) + 0.06 * x) * dip(870, 55, 0.13)
    soil = (0.08 + 0.27 * x**0.7) * dip(520, 40, 0.12) * dip(890, 50, 0.05)
    # Pure water absorbs ever more beyond 700 nm, and again at 970 nm; particles scatter.
    absorption = np.exp(-3.2 * rise(735, 22)) * dip(970, 30, 0.5)
    water = 0.012 + 0.045 * np.exp(-(((w - 490) / 110) ** 2)) * absorption
    turbid = 0.015 + 0.085 * np.exp(-(((w - 570) / 110) ** 2)) * absorption
    # Hydrocarbons flatten the visible range; bitumen is darkest and nearly featureless here.
    asphalt = 0.085 + 0.035 * x
    worn = 0.135 + 0.075 * x**0.7
    bitumen = 0.065 + 0.050 * x**1.4
    concrete = 0.20 + 0.13 * (1.0 - np.exp(-3.0 * x)) * dip(880, 60, 0.03)
    metal = 0.37 - 0.05 * x
    named = {
        "leaf": leaf,
        "grass": grass,
        "dry grass": dry_grass,
        "tile": tile,
        "soil": soil,
        "water": water,
        "turbid water": turbid,
        "asphalt": asphalt,
        "worn asphalt": worn,
        "bitumen": bitumen,
        "concrete": concrete,
        "metal": metal,
    }
    return {name: spectrum.astype(np.float32) for name, spectrum in named.items()}
