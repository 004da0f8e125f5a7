"""A run folder that is ready for its map, with untrained parts: enough to time the map stage."""

import json
from pathlib import Path

import numpy as np
import torch
import zarr
from safetensors.torch import save_file

from benchmarks.exact import random_unet
from mtmsd.classifier import Sizes
from mtmsd.experts import MAX_RANK, Expert, input_width
from mtmsd.features import feature_width, stage_widths
from mtmsd.heads import make_member
from mtmsd.purify import Selection
from mtmsd.spectra import spectra_width
from pipeline.artifacts import RunFolder, write_json
from pipeline.config import Config
from pipeline.member_training import described
from pipeline.scene import Scene, open_scene, write_scene

CLASSES, COMPONENTS, ANCHORS = 20, 6, 500


def stand_in(path: Path, config: Config, height: int, width: int) -> tuple[RunFolder, Scene]:
    """Write a scene of noise, its reduced cube, a random U-Net of the configured width, random members."""
    rng = np.random.default_rng(0)
    folder = RunFolder(path)
    path.mkdir(parents=True)
    counts = rng.integers(0, 1000, (2, height, width), dtype=np.uint16)
    write_scene(path / "scene.zarr", counts, chunk=256)
    group = zarr.open_group(folder.reduced, mode="w")
    cube = group.create_array(
        "reduced", shape=(COMPONENTS, height, width), chunks=(COMPONENTS, 256, 256), dtype="float32",
        dimension_names=("component", "y", "x"),
    )  # fmt: skip
    for row in range(0, height, 256):
        cube[:, row : row + 256] = rng.standard_normal(
            (COMPONENTS, min(256, height - row), width), np.float32
        )
    unet = random_unet(config.unet.channels)
    folder.unet.parent.mkdir()
    about = {"unet": json.dumps(config.model_dump(mode="json")["unet"]), "components": str(COMPONENTS)}
    save_file(unet.state_dict(), folder.unet, about)
    width = feature_width(config.unet, config.features.stages, config.patches.side)
    spread = np.linspace(0, width - 1, config.kept_channels(CLASSES))
    kept = tuple(int(channel) for channel in spread.round())
    folder.classifier.mkdir()
    codes = list(range(1, CLASSES + 1))
    classes = [[code, f"class {code}", "#808080"] for code in codes]
    selection = Selection(kept, kept)
    write_json(folder.selection, {"codes": codes, "classes": classes} | selection.as_json())
    stages = selection.per_stage(stage_widths(config.unet, config.features.stages, config.patches.side))
    spectra = spectra_width(COMPONENTS, *config.features.boxes, config.patch)
    sizes = Sizes(len(config.features.timesteps), stages, CLASSES, spectra)
    write_json(folder.calibration, {"temperature": 1.0})
    for member in range(config.classifier.members):
        torch.manual_seed(member)
        head = make_member(config.classifier, config.fusion, sizes)
        save_file(head.state_dict(), folder.member(member), described(config, sizes, []))
    for name in config.experts:
        inputs = input_width(name, sizes)
        expert = Expert(inputs, min(inputs, MAX_RANK), ANCHORS, CLASSES)
        parts = {part: 0.1 * torch.randn(values.shape) for part, values in expert.state_dict().items()}
        save_file(parts, folder.expert(name))
    return folder, open_scene(str(path / "scene.zarr"))
