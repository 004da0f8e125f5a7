"""The pictures of the report: small PNGs as data URIs, from every n-th pixel of scene and map."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from PIL import Image

from mtmsd.split import TEST, TRAIN
from pipeline.overviews import layer
from pipeline.scene import Scene

Array = np.ndarray[Any, np.dtype[Any]]
Records = Sequence[dict[str, Any]]

TRAIN_COLOR, TEST_COLOR = "#ff8c1a", "#3d9bff"
FALSE_COLOUR_NM = (860.0, 650.0, 550.0)
TRUE_COLOUR_NM = (640.0, 550.0, 460.0)
_MAX_SCENE_BYTES = 8 * 2**30  # float32 bytes of a scene that a report still reads as a whole
_GREY = "#737b85"  # readable on white and on the dark page alike


class Quicklook(NamedTuple):
    """A picture of the scene: uint8 RGB (y, x, 3), where it has data, its step and its caption."""

    rgb: Array
    valid: Array
    step: int
    caption: str


def data_uri(image: Array) -> str:
    """Return uint8 (y, x, 3 or 4) as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def quicklook(scene: Scene, reduced: Path, max_side: int) -> Quicklook:
    """Return a false-colour picture of the scene, at most `max_side` pixels along a side.

    Reads the scene once, chunk by chunk. A scene beyond 8 GiB is shown by its first principal
    components instead, if there are any: the reduced cube is many times smaller.
    """
    step = -(-max(scene.height, scene.width) // max_side)
    large = scene.bands * scene.height * scene.width * 4 > _MAX_SCENE_BYTES
    if large and reduced.exists():
        cube = layer(zarr.open_group(str(reduced), mode="r"), "reduced")
        count = min(3, cube.shape[0])
        values = np.asarray(cube[:count, ::step, ::step])
        values = np.concatenate([values, np.repeat(values[-1:], 3 - count, axis=0)])
        caption = f"first {count} principal components in red, green and blue"
    else:
        bands, caption = _display_bands(scene)
        values = _strided(scene, bands, step)
    valid = np.isfinite(values).all(axis=0)
    return Quicklook(_stretched(values, valid), valid, step, caption)


def with_alpha(rgb: Array, shown: Array) -> Array:
    """Return RGB (y, x, 3) as RGBA, clear where `shown` (y, x) is False."""
    alpha = np.where(shown, 255, 0).astype(np.uint8)
    return np.concatenate([rgb, alpha[..., None]], axis=-1)


def scale_image(values: Array, low: float, high: float, colormap: str) -> Array:
    """Return values (y, x) in a colour scale as RGBA; NaN is clear."""
    shown = np.isfinite(values)
    share = np.clip((np.where(shown, values, low) - low) / (high - low), 0.0, 1.0)
    rgb = (colormaps[colormap](share)[..., :3] * 255).round().astype(np.uint8)
    return with_alpha(rgb, shown)


def gradient(colormap: str) -> str:
    """Return a colour scale as a CSS gradient from left to right."""
    stops = (colormaps[colormap](np.linspace(0.0, 1.0, 9))[:, :3] * 255).round().astype(int)
    return "linear-gradient(to right, " + ", ".join(f"rgb({r} {g} {b})" for r, g, b in stops) + ")"


def split_image(look: Quicklook, y: Array, x: Array, split: Array) -> Array:
    """Return the scene in grey with its unused, test and training pixels marked, as RGBA.

    Training pixels are few and scattered: each is drawn as a cross of five.
    """
    grey = (look.rgb.mean(axis=-1) * 0.55).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=-1)
    cross = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    marks = ((TEST, TEST_COLOR, cross[:1]), (TRAIN, TRAIN_COLOR, cross))
    for part, color, shape in marks:
        at = split == part
        for dy, dx in shape:
            rows = np.clip(y[at] // look.step + dy, 0, image.shape[0] - 1)
            columns = np.clip(x[at] // look.step + dx, 0, image.shape[1] - 1)
            image[rows, columns] = list(bytes.fromhex(color[1:]))
    return with_alpha(image, look.valid)


def pretraining_curve(history: Records) -> str:
    """Return the loss over the images seen, on a logarithmic axis when it stays above 0."""
    figure = Figure(figsize=(5.2, 2.9), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    images = [record["images"] for record in history]
    loss = [record["loss"] for record in history]
    axes.plot(images, loss, color="#3d9bff", linewidth=1.2, marker=_marker(history))
    axes.set_xlabel("images seen")
    axes.set_ylabel("loss")
    if min(loss, default=0) > 0:
        axes.set_yscale("log")
    with rc_context({"axes.formatter.min_exponent": 3}):  # 0.6 rather than 6 x 10^-1
        return _figure_uri(figure)


def classifier_curves(history: Records) -> str:
    """Return loss and training accuracy of every member of the ensemble over its epochs."""
    figure = Figure(figsize=(5.2, 2.9), dpi=160, layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("loss", "train_accuracy"),
        ("loss", "training accuracy"),
        strict=True,
    ):
        members = sorted({record["member"] for record in history})
        for place, member in enumerate(members):
            mine = [record for record in history if record["member"] == member]
            color = colormaps["viridis"](0.15 + 0.7 * place / max(1, len(members) - 1))
            epochs = [record["epoch"] for record in mine]
            values = [record[key] for record in mine]
            axes.plot(epochs, values, color=color, linewidth=0.9, marker=_marker(mine))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
    return _figure_uri(figure)


def reliability_curve(rows: Sequence[Sequence[float]]) -> str:
    """Return the share that is right over mean confidence, a dot per bin, its area by the bin's pixels."""
    figure = Figure(figsize=(5.2, 2.9), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    confidence, right, pixels = np.array(rows).T
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9)
    axes.plot(confidence, right, color="#3d9bff", linewidth=0.9)
    axes.scatter(confidence, right, s=8 + 120 * pixels / pixels.max(), color="#3d9bff")
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
    return _figure_uri(figure)


def mixing_map(mixing: dict[str, Any]) -> str:
    """Return the weights of a fusion as cells, timesteps along and stages up, each with its number."""
    weights = np.array(mixing["weights"]).T
    figure = Figure(figsize=(5.2, 2.9), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(weights, cmap="viridis", vmin=0.0, aspect="auto", origin="lower")
    for (stage, t), weight in np.ndenumerate(weights):
        color = "black" if weight > weights.max() / 2 else "white"
        axes.text(t, stage, f"{100 * weight:.2g}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(mixing["timesteps"])), mixing["timesteps"])
    axes.set_yticks(range(len(mixing["stages"])), mixing["stages"])
    axes.set_xlabel("timestep")
    axes.set_ylabel("decoder stage")
    shown.set_zorder(3)  # above the grid
    return _figure_uri(figure)


def _marker(history: Records) -> str:
    return "o" if len(history) == 1 else ""


def _figure_uri(figure: Figure) -> str:
    """Return a figure on clear ground, its lettering in a grey that suits light and dark."""
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
        axes.tick_params(which="both", colors=_GREY, labelsize=8)
        axes.xaxis.label.set_color(_GREY)
        axes.yaxis.label.set_color(_GREY)
        axes.grid(alpha=0.25, color=_GREY)
        for side, spine in axes.spines.items():
            spine.set_color(_GREY)
            spine.set_visible(side in ("left", "bottom"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _display_bands(scene: Scene) -> tuple[list[int], str]:
    """Return three bands to show and what they are, leaving out bands without any data."""
    y, x = scene.height // 2, scene.width // 2
    middle = scene.read(y, min(y + 64, scene.height), x, min(x + 64, scene.width))
    filled = np.flatnonzero(np.isfinite(middle).any(axis=(1, 2)))
    usable = filled if filled.size else np.arange(scene.bands)
    if scene.wavelength_nm is None or not np.isfinite(np.asarray(scene.wavelength_nm)[usable]).any():
        chosen = [int(usable[round(share * (usable.size - 1))]) for share in (0.75, 0.45, 0.2)]
        named = [f"band {band + 1}" for band in chosen]
    else:
        usable = usable[np.isfinite(np.asarray(scene.wavelength_nm)[usable])]
        nm = np.asarray(scene.wavelength_nm)[usable]
        wanted = FALSE_COLOUR_NM if nm.max() >= 760.0 else TRUE_COLOUR_NM
        chosen = [int(usable[np.abs(nm - target).argmin()]) for target in wanted]
        named = [f"{scene.wavelength_nm[band]:.0f} nm" for band in chosen]
    return chosen, "{}, {} and {} in red, green and blue".format(*named)


def _strided(scene: Scene, bands: list[int], step: int) -> Array:
    """Return every step-th pixel of some bands, (band, y, x), read chunk by chunk."""
    rows, columns = -(-scene.height // step), -(-scene.width // step)
    values = np.full((len(bands), rows, columns), np.nan, np.float32)
    high, wide = scene.chunk
    for y0 in range(0, scene.height, high):
        for x0 in range(0, scene.width, wide):
            y1, x1 = min(y0 + high, scene.height), min(x0 + wide, scene.width)
            y, x = -y0 % step, -x0 % step
            if y0 + y >= y1 or x0 + x >= x1:
                continue
            block = scene.read(y0, y1, x0, x1, bands)[:, y::step, x::step]
            top, left = (y0 + y) // step, (x0 + x) // step
            values[:, top : top + block.shape[1], left : left + block.shape[2]] = block
    return values


def _stretched(values: Array, valid: Array) -> Array:
    """Return (3, y, x) stretched between the 2nd and 98th percentile as uint8 (y, x, 3)."""
    image = np.zeros((*valid.shape, 3), np.uint8)
    if valid.any():
        for channel, band in enumerate(values):
            low, high = np.percentile(band[valid], (2, 98))
            share = np.clip((band - low) / max(high - low, 1e-12), 0.0, 1.0)
            image[..., channel] = np.where(valid, np.nan_to_num(share) * 255, 0)
    return image
