"""The trained parts of a run, loaded where they are used: U-Net, extractor, ensemble."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from mtmsd.classifier import Member, Sizes
from mtmsd.diffusion import Schedule
from mtmsd.ensemble import Ensemble, assemble
from mtmsd.experts import Committee, Expert
from mtmsd.features import Extractor, Readout
from mtmsd.heads import make_member
from mtmsd.purify import Selection
from mtmsd.spectral_reader import SpectralReader
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


def trainees(config: Config) -> list[int | str]:
    """What ``classify`` trains: members, by number, and experts, by name."""
    return [*range(config.classifier.members), *config.experts]


def is_trained(config: Config, folder: RunFolder, trainee: int | str) -> bool:
    """Whether a member or an expert, and what it or its twin says of held-out pixels, is there and whole."""
    weights = folder.expert(trainee) if isinstance(trainee, str) else folder.member(trainee)
    needed = [weights, *([folder.held_out(trainee)] if config.classifier.calibrate else [])]
    return all(is_whole(path) for path in needed)


def check_trained(config: Config, folder: RunFolder, stage: str) -> None:
    """Refuse to begin a stage whose trained inputs are not there or damaged.

    Raises:
        UserError: Which file, and which stage makes it again.
    """
    needed = {folder.unet: "pretrain"} if stage in ("extract", "map") and config.reads_features else {}
    if stage == "map":
        needed |= {folder.member(index): "classify" for index in range(config.classifier.members)}
        needed |= {folder.expert(name): "classify" for name in config.experts}
    if stage == "map" and config.classifier.calibrate:
        needed |= {folder.calibration: "classify"}
    if stage == "map" and config.fusion.keep_timesteps is not None:
        needed |= {folder.mixing: "classify"}
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
) -> Extractor | SpectralReader:
    """The extractor with the run's trained U-Net, or without one for a classifier that needs none.

    With a selection it gives the purified features; with an ensemble, standardised as that expects, of
    the timesteps that it reads and of all pixels that a window answers for on the map, the margins of its
    block included.
    """
    device, features = "cuda" if gpu else "cpu", config.features
    readout, patches = None, config.patches
    if ensemble is not None:
        features, patches = replace(features, timesteps=read_timesteps(config, folder)), patches.wide
    if not config.reads_features:
        return SpectralReader(features, patches, config.patch, device)
    if selection is not None:
        shape = len(features.timesteps), len(selection.centre)
        mean, scale = torch.zeros(shape), torch.ones(shape)
        if ensemble is not None:
            mean, scale = ensemble.mean_2TK[0], ensemble.scale_2TK[0]
        readout = Readout(selection.centre, selection.pooled, mean, scale)
    unet = load_unet(folder.unet).to(device)
    return Extractor(unet, Schedule(config.diffusion), features, patches, readout, config.patch)


def read_timesteps(config: Config, folder: RunFolder) -> tuple[int, ...]:
    """The timesteps that the ensemble reads: all, or those that the mixing weights left."""
    if config.fusion.keep_timesteps is None:
        return config.features.timesteps
    return tuple(read_json(folder.mixing)["kept"])


def load_members(config: Config, folder: RunFolder, gpu: bool) -> list[Member]:
    """The trained members of a run, of the kind that each file states (MTMSD's where it states none)."""
    members = []
    for index in range(config.classifier.members):
        tensors, about = read_weights(folder.member(index))
        timesteps, channels, classes, spectra = json.loads(about["shape"])
        stages = tuple(json.loads(about.get("stages", f"[{channels}]")))
        member = make_member(
            replace(config.classifier, kind=about.get("classifier", "mlp")),
            replace(config.fusion, kind=about.get("fusion", "selective")),
            Sizes(timesteps, stages, classes, spectra),
        )
        member.load_state_dict(tensors)
        members.append(member.eval().to("cuda" if gpu else "cpu"))
    return members


def load_ensemble(config: Config, folder: RunFolder, gpu: bool) -> Ensemble:
    """The trained members and experts of a run, as one."""
    temperature = read_json(folder.calibration)["temperature"] if config.classifier.calibrate else 1.0
    ensemble = assemble(load_members(config, folder, gpu), config.classifier.vote, temperature)
    experts = {}
    for name in config.experts:
        tensors, _ = read_weights(folder.expert(name))
        experts[name] = Expert.of(tensors).to("cuda" if gpu else "cpu")
    return Committee(ensemble, experts) if experts else ensemble
