"""The trained parts of a run, loaded where they are used: U-Net, extractor, ensemble."""

import json
import sys
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from mtmsd.classifier import Head
from mtmsd.diffusion import Schedule
from mtmsd.ensemble import Ensemble
from mtmsd.features import Extractor, Readout
from mtmsd.purify import Selection
from mtmsd.unet import UNet, UNetConfig
from mtmsd.unets import make_unet
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config
from pipeline.errors import UserError


def is_whole(path: Path) -> bool:
    """Whether a file of weights is there and complete; a damaged one is said."""
    try:
        with storage.local_copy(path) as file, safe_open(file, framework="pt"):
            return True
    except FileNotFoundError:
        return False
    except SafetensorError as error:
        print(f"{path}: damaged ({error})", file=sys.stderr)
        return False


def check_trained(config: Config, folder: RunFolder, stage: str) -> None:
    """Refuse to begin a stage whose trained inputs are not there or damaged.

    Raises:
        UserError: Which file, and which stage makes it again.
    """
    needed = {folder.unet: "pretrain"} if stage in ("extract", "map") else {}
    if stage == "map":
        needed |= {folder.member(index): "classify" for index in range(config.classifier.members)}
    if stage == "map" and config.classifier.calibrate:
        needed |= {folder.calibration: "classify"}
    for path, maker in needed.items():
        if not (path.exists() if path.suffix == ".json" else is_whole(path)):
            raise UserError(
                f"{path}: missing or damaged; restore it from a copy, or make it again with --from {maker} "
                "(a --model: in its own run)"
            )


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of weights."""
    with storage.local_copy(path) as file, safe_open(file, framework="pt") as weights:
        return weights.get_tensors(), weights.metadata() or {}


def load_unet(path: Path) -> UNet:
    """The trained U-Net (averaged weights) with the configuration in its file's metadata."""
    tensors, metadata = read_weights(path)
    config = TypeAdapter(UNetConfig).validate_json(metadata["unet"])
    unet = make_unet(config, int(metadata["components"]))
    unet.load_state_dict(tensors)
    return unet


def make_extractor(
    config: Config,
    folder: RunFolder,
    gpu: bool,
    selection: Selection | None,
    ensemble: Ensemble | None = None,
) -> Extractor:
    """The extractor with the run's trained U-Net.

    With a selection it gives the purified features; with an ensemble, standardised as that expects, and
    of all pixels that a window answers for on the map, the margins of its block included.
    """
    unet = load_unet(folder.unet).to("cuda" if gpu else "cpu")
    readout, patches = None, config.patches
    if selection is not None:
        shape = len(config.features.timesteps), len(selection.centre)
        mean, scale = torch.zeros(shape), torch.ones(shape)
        if ensemble is not None:
            mean, scale = ensemble.mean_2TK[0], ensemble.scale_2TK[0]
            patches = patches.wide
        readout = Readout(selection.centre, selection.pooled, mean, scale)
    return Extractor(unet, Schedule(config.diffusion), config.features, patches, readout)


def load_ensemble(config: Config, folder: RunFolder, gpu: bool) -> Ensemble:
    """The trained members of a run."""
    heads = []
    for index in range(config.classifier.members):
        tensors, metadata = read_weights(folder.member(index))
        head = Head(config.classifier, config.fusion, *json.loads(metadata["shape"]))
        head.load_state_dict(tensors)
        heads.append(head.eval().to("cuda" if gpu else "cpu"))
    temperature = read_json(folder.calibration)["temperature"] if config.classifier.calibrate else 1.0
    return Ensemble(heads, config.classifier.vote, temperature)
