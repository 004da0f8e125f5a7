"""A synthetic city scene for trying the pipeline and for its tests; nothing in it was measured.

Materials that look alike in the spectrum (street and flat roof, lawn and tree) differ in shape
and surroundings, so that spatial context decides. The city is drawn at half a metre and averaged
to one metre, which makes mixed pixels along every edge.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.demo_layout import FINE, SUN, Canvas, draw_city
from pipeline.demo_spectra import CLASSES, SURFACES, spectra
from pipeline.scene import write_scene

Floats = NDArray[np.float32]

SUN_SLOPE = 1.5  # tangent of the sun's elevation
SKY_LIGHT = 0.3  # what is left of the light in a shadow
BLOCK = 64  # a class present in a block of this many pixels is labelled there, where it can be
LABELLED_SHARE = 0.17  # of all pixels, aimed at
SCALE = 1e-4
FILL = 65535


def _shadow(top_m: Floats) -> NDArray[np.bool_]:
    """Which drawn pixels lie in the shadow of something higher, towards the sun."""
    shadow = np.zeros(top_m.shape, dtype=bool)
    reach = int(float(top_m.max()) / SUN_SLOPE * FINE)
    for step in range(1, reach + 1):
        dy, dx = round(step * SUN[1]), round(step * SUN[0])
        moved = ndimage.shift(top_m, (-dy, -dx), order=0, mode="nearest")
        shadow |= moved - step / FINE * SUN_SLOPE > top_m + 0.3
    return shadow


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Floats:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _light_and_mixture(canvas: Canvas, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Brightness, share of the second endmember, and share of direct light, at drawn pixels."""
    shape = canvas.shape
    surface = canvas.surface
    texture = np.array([s.texture for s in SURFACES.values()], dtype=np.float32)[surface]
    spread = np.array([s.mixture_spread for s in SURFACES.values()], dtype=np.float32)[surface]
    grain, patches = _smooth_noise(rng, shape, 0.8), _smooth_noise(rng, shape, 8.0)
    stains = _smooth_noise(rng, shape, 12.0)
    tone = canvas.tone * canvas.shade
    tone = tone.reshape(shape) * np.exp(texture.reshape(shape) * (grain + patches))
    mixture = canvas.mixture.reshape(shape) + 0.7 * spread.reshape(shape) * stains
    direct = np.where(_shadow(canvas.top.reshape(shape)), 0.0, 1.0).astype(np.float32)
    return tone.astype(np.float32), np.clip(mixture, 0.0, 1.0).astype(np.float32), direct


def _reflectance(canvas: Canvas, rng: np.random.Generator, wavelength_nm: NDArray[np.float64]) -> Floats:
    """Render, blur, average to scene pixels and add noise: (band, y, x)."""
    rows, columns = canvas.shape
    tone, mixture, direct = _light_and_mixture(canvas, rng)
    endmember = spectra(wavelength_nm)
    first = np.stack([endmember[s.first] for s in SURFACES.values()])
    second = np.stack([endmember[s.second] for s in SURFACES.values()])
    surface = canvas.surface.reshape(rows, columns)
    cube = np.empty((wavelength_nm.size, rows // FINE, columns // FINE), dtype=np.float32)
    for band, nm in enumerate(wavelength_nm):
        material = (1.0 - mixture) * first[surface, band] + mixture * second[surface, band]
        sky = SKY_LIGHT * (550.0 / nm) ** 0.8  # the sky is blue, and so is what it lights
        drawn = material * tone * (sky + (1.0 - sky) * direct)
        seen = ndimage.gaussian_filter(drawn, 0.55 * FINE, mode="nearest")
        cube[band] = seen.reshape(rows // FINE, FINE, columns // FINE, FINE).mean(axis=(1, 3))
        edge = np.exp(-(nm - 400.0) / 40.0) + np.exp(-(1000.0 - nm) / 60.0)
        sigma = 0.008 * (1.0 + 1.2 * edge) + 0.02 * np.sqrt(cube[band])
        cube[band] += sigma * rng.standard_normal(cube.shape[1:], dtype=np.float32)
    return np.clip(cube, 0.0001, 6.0)


def _interior(canvas: Canvas) -> NDArray[np.uint8]:
    """Class code of scene pixels whose whole neighbourhood is of one class, else 0."""
    rows, columns = canvas.shape
    code = np.array([s.code for s in SURFACES.values()], dtype=np.uint8)[canvas.surface]
    code = code.reshape(rows, columns)
    reach = 2 * FINE + 1
    pure = ndimage.minimum_filter(code, reach) == ndimage.maximum_filter(code, reach)
    whole = pure.reshape(rows // FINE, FINE, columns // FINE, FINE).all(axis=(1, 3))
    return np.where(whole, code[::FINE, ::FINE], 0).astype(np.uint8)


def _polygons(rng: np.random.Generator, shape: tuple[int, int], side: int) -> NDArray[np.int64]:
    """Number of the irregular polygon that each pixel lies in, about `side` pixels across."""
    rows, columns = shape
    corner_y, corner_x = np.mgrid[0:rows:side, 0:columns:side]
    seed_y = np.minimum(corner_y + rng.integers(0, side, corner_y.shape), rows - 1)
    seed_x = np.minimum(corner_x + rng.integers(0, side, corner_x.shape), columns - 1)
    away = np.ones(shape, dtype=bool)
    away[seed_y, seed_x] = False
    nearest = ndimage.distance_transform_edt(away, return_distances=False, return_indices=True)
    return np.asarray(nearest[0] * columns + nearest[1], dtype=np.int64)


def _draw_labels(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Label some polygons inside objects: (y, x), 0 = unlabelled."""
    interior = _interior(canvas)
    rows, columns = interior.shape
    y, x = np.nonzero(interior)
    code = interior[y, x].astype(np.int64)
    polygon = _polygons(rng, interior.shape, 11)[y, x]
    block = (y // BLOCK) * (columns // BLOCK + 1) + x // BLOCK
    key = np.stack([code, block, polygon])
    pieces, member, size = np.unique(key, axis=1, return_inverse=True, return_counts=True)
    member = member.ravel()
    chosen = np.zeros(size.size, dtype=bool)
    even = LABELLED_SHARE * rows * columns / len(CLASSES.codes)
    for cls in np.unique(code):
        of_class = np.flatnonzero((pieces[0] == cls) & (size >= 4))
        present = size[of_class].sum()
        wanted = 0.5 * even + 0.5 * LABELLED_SHARE * present
        chosen[of_class] = rng.random(of_class.size) < min(0.85, wanted / max(present, 1))
        for place in np.unique(pieces[1, of_class]):
            here = of_class[pieces[1, of_class] == place]
            if not chosen[here].any():
                chosen[here[size[here].argmax()]] = True
    labels = np.zeros(interior.shape, dtype=np.uint8)
    keep = chosen[member]
    labels[y[keep], x[keep]] = code[keep]
    return labels


def make_demo_scene(
    path: str | Path, seed: int = 0, height: int = 256, width: int = 384, bands: int = 48
) -> None:
    """Write a synthetic city of height x width pixels of one metre as a scene at `path`.

    Reflectance is uint16 times 1e-4, `bands` bands from 400 to 1000 nm, EPSG:32615 at an
    arbitrary place. Ten classes, labelled in polygons inside objects. The same arguments give
    the same scene. It is made in memory: meant for sizes around the default.

    Raises:
        UserError: Something lies at `path`.
        ValueError: Fewer than 48 pixels along a side, or fewer than 8 bands.
    """
    if min(height, width) < 48 or bands < 8:
        raise ValueError(
            f"a demo scene needs height and width >= 48 and bands >= 8, not {height} x {width} x {bands}"
        )
    plan_rng, look_rng, label_rng = (np.random.default_rng([seed, part]) for part in range(3))
    wavelength_nm = np.linspace(400.0, 1000.0, bands)
    canvas = draw_city(plan_rng, height, width)
    reflectance = _reflectance(canvas, look_rng, wavelength_nm)
    write_scene(
        path,
        np.rint(reflectance / SCALE).astype(np.uint16),
        wavelength_nm=wavelength_nm,
        crs="EPSG:32615",
        transform=(1.0, 0.0, 270000.0, 0.0, -1.0, 3290000.0),
        labels=_draw_labels(canvas, label_rng),
        classes=CLASSES,
        scale_factor=SCALE,
        fill_value=FILL,
        attributes={
            "title": "Synthetic city (drawn by rule, spectra from formulas; not a measurement)",
            "seed": seed,
        },
    )
