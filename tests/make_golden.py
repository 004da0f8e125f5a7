"""Make the golden files of tests/golden: run ``python -m tests.make_golden``.

The values come from ``tests.reference`` alone, in float64; ``mtmsd`` lends the parameters' names and
shapes, which the files then hold fixed. Weights are not stored: they follow from the names.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmsd.classifier import ClassifierConfig, Sizes
from mtmsd.fusion import FusionConfig
from mtmsd.heads import make_member
from mtmsd.unet import UNet, UNetConfig
from tests import reference

FOLDER = Path(__file__).parent / "golden"
UNET = UNetConfig(channels=32, multipliers=(1, 2, 2), res_blocks=2, heads=4, groups=32)
COMPONENTS, SIZE, STRIDE = 4, 16, 2
TIMESTEPS, STAGES = (50, 500, 950), (0, 1, 2, 3, 5)
HEAD = ClassifierConfig(standardise=False, hidden=(8, 6))
FUSION = FusionConfig(hidden=5)
HEAD_SIZES = Sizes(timesteps=3, stages=(10,), classes=4)
LAMBDA, KEPT = 0.8, 36

Arrays = dict[str, NDArray[Any]]


def shapes() -> dict[str, dict[str, list[int]]]:
    """Return parameter names and shapes of the U-Net and of the head."""
    models = {"unet": UNet(UNET, COMPONENTS), "head": make_member(HEAD, FUSION, HEAD_SIZES)}
    return {
        name: {key: list(value.shape) for key, value in model.state_dict().items()}
        for name, model in models.items()
    }


def unet_values(shapes_of: dict[str, list[int]]) -> Arrays:
    """Return features of two windows at every timestep and the model's output at the first."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(2, COMPONENTS, SIZE, SIZE)).astype(np.float32)
    noise = rng.normal(size=x.shape[1:]).astype(np.float32)
    state, before = reference.recipe_weights(shapes_of), (SIZE - STRIDE + 1) // 2
    windows, eps = torch.from_numpy(x), torch.from_numpy(noise)
    block = slice(before, before + STRIDE)
    centre, pooled = reference.features(state, windows, eps, TIMESTEPS, STAGES, block)
    bar = reference.alpha_bars(1000)[TIMESTEPS[0]]
    noisy = bar**0.5 * windows.double() + (1 - bar) ** 0.5 * eps.double()
    _, output = reference.unet(state, noisy, TIMESTEPS[0])
    return {"x": x, "noise": noise, "centre": centre, "pooled": pooled, "output": output.numpy()}


def purification_values() -> Arrays:
    """Return class means and the channels that the loops over pairs keep, best first."""
    means = np.random.default_rng(12).normal(size=(5, 4, 60)).astype(np.float32)
    scores = reference.purification_scores(means.astype(np.float64), LAMBDA, 0.5)
    return {"class_means": means, "scores": scores, "selected": np.argsort(-scores, kind="stable")[:KEPT]}


def head_values(shapes_of: dict[str, list[int]]) -> Arrays:
    """Return what fusion and head give for four pixels."""
    timesteps, channels = HEAD_SIZES.timesteps, sum(HEAD_SIZES.stages)
    centre, pooled = np.random.default_rng(13).normal(size=(2, 4, timesteps, channels)).astype(np.float32)
    state = reference.recipe_weights(shapes_of)
    fusion = {name[7:]: value for name, value in state.items() if name.startswith("dy_att.")}
    layers = {name: value for name, value in state.items() if name.startswith("layers.")}
    weights, fused = reference.fusion(fusion, centre, pooled)
    return {
        "centre": centre, "pooled": pooled, "weights": weights, "fused": fused,
        "logits": reference.head(layers, fused),
    }  # fmt: skip


def values(names: dict[str, dict[str, list[int]]]) -> dict[str, Arrays]:
    """Return what every golden file holds."""
    return {
        "unet": unet_values(names["unet"]),
        "purification": purification_values(),
        "head": head_values(names["head"]),
    }


def main() -> None:
    """Write the files anew."""
    FOLDER.mkdir(exist_ok=True)
    names = shapes()
    lines = ",\n".join(f'"{model}": {json.dumps(found)}' for model, found in names.items())
    (FOLDER / "shapes.json").write_text(f"{{{lines}}}\n")
    for name, arrays in values(names).items():
        np.savez_compressed(FOLDER / f"{name}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
