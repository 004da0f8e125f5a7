"""The trained parts of a run, loaded where they are used: U-Net, extractor, ensemble."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from mtmsd.classifier import Ensemble, Head
from mtmsd.diffusion import Schedule
from mtmsd.features import Extractor
from mtmsd.unet import UNet
from pipeline.artifacts import RunFolder
from pipeline.config import Config


def load_unet(path: Path) -> UNet:
    """The trained U-Net (averaged weights) with the configuration in its file's metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    config = Config.model_validate({"unet": json.loads(metadata["unet"])})
    unet = UNet(config.unet, int(metadata["components"]))
    unet.load_state_dict(load_file(path))
    return unet


def make_extractor(config: Config, folder: RunFolder, gpu: bool) -> Extractor:
    """The extractor with the run's trained U-Net."""
    unet = load_unet(folder.unet).to("cuda" if gpu else "cpu")
    return Extractor(unet, Schedule(config.diffusion), config.features, config.patches)


def load_ensemble(config: Config, folder: RunFolder, gpu: bool) -> Ensemble:
    """The trained members of a run."""
    heads = []
    for index in range(config.classifier.members):
        path = folder.member(index)
        with safe_open(path, framework="pt") as file:
            shape = json.loads(file.metadata()["shape"])
        head = Head(config.classifier, config.fusion, *shape)
        head.load_state_dict(load_file(path))
        heads.append(head)
    return Ensemble(heads, config.classifier.vote).to("cuda" if gpu else "cpu")
