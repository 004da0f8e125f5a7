"""What the stages that are to do will cost, known before anything starts; --dry-run refuses what cannot fit.

Counts are exact or, where pixels without data save work, upper bounds. Bytes are those before compression.
Memory is an estimate: a process with its libraries, the weights, and the largest arrays held at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mtmsd.experts import MAX_ANCHORS
from mtmsd.features import feature_width, windows_at_once
from mtmsd.split import TRAIN
from mtmsd.unet import UNetConfig
from mtmsd.unets import make_unet
from pipeline.artifacts import RunFolder
from pipeline.checkpoints import checkpoints
from pipeline.classes import plain_table
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.labels import labelled_split
from pipeline.machine import Machine, shown
from pipeline.plan import Plan
from pipeline.readers import GROUP, KEPT_BYTES, Reduced, TileReader, WindowReader, reduced_grid
from pipeline.scene import Scene
from pipeline.units import TileGrid

_PROCESS = 600 << 20
"""Resident memory of a process that has imported torch and Ray (measured: 560 to 590 MiB)."""
_FLOAT = 4
_MATRICES, _COPIES = 8, 6
"""Of anchors by anchors, in double precision, and of the anchors' features (float32), that the training of an
expert holds (measured)."""


@dataclass(frozen=True)
class Cost:
    """One stage: its units, its work, its bytes, and the memory of one of its actors or workers."""

    stage: str
    unit: str
    units: int
    done: int
    windows: int = 0
    unet_passes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    actor_bytes: int = _PROCESS
    member_steps: int = 0
    """Optimiser steps of all members together."""

    def left(self, amount: int) -> int:
        """The share of an amount that is not done yet."""
        return round(amount * (self.units - self.done) / max(1, self.units))


def costs(config: Config, folder: RunFolder, scene: Scene, plan: Plan) -> list[Cost]:
    """The stages to do, in order, as what earlier runs left of them is kept or not."""
    kept = {stage for stage in plan.todo if stage not in plan.forget}
    parts = {
        "reduce": lambda: _reduce(config, scene),
        "pretrain": lambda: _pretrain(config),
        "extract": lambda: _extract(config, folder, scene),
        "classify": lambda: _classify(config, scene),
        "map": lambda: _map(config, scene),
    }
    found = []
    for stage in plan.todo:
        part: dict[str, Any] = parts[stage]() if stage in parts else {"unit": "page", "units": 1}
        done = _done(stage, config, folder) if stage in kept else 0
        found.append(Cost(stage=stage, done=min(done, part["units"]), **part))
    return found


def _done(stage: str, config: Config, folder: RunFolder) -> int:
    if stage == "pretrain":
        newest = checkpoints(folder.pretrain)[-1:]
        return int(newest[0].stem.removeprefix("step-")) if newest else 0
    if stage == "classify":
        return sum(folder.member(index).exists() for index in range(config.classifier.members))
    return len(folder.done_units(stage))


def _reduce(config: Config, scene: Scene) -> dict[str, Any]:
    grid = reduced_grid(scene)
    tiles, cube = len(grid), scene.bands * grid.side**2 * _FLOAT
    return {
        "unit": "tiles", "units": tiles, "bytes_read": 2 * tiles * cube,
        "bytes_written": config.reduce.components * scene.height * scene.width * _FLOAT,
        # As stored, as float32, in double precision for the moments, and as a row of the dataset.
        "actor_bytes": _PROCESS + 5 * cube,
    }  # fmt: skip


def _pretrain(config: Config) -> dict[str, Any]:
    steps, batch, size = config.pretrain.steps, config.pretrain.batch, config.patches.size
    if not config.reads_features:
        return {"unit": "steps", "units": 0}
    weights, maps = unet_bytes(config, size)
    patch = config.reduce.components * size**2 * _FLOAT
    state = 4 * weights  # model, averaged weights, and both moments of the optimiser
    return {
        "unit": "steps", "units": steps, "unet_passes": steps * batch, "bytes_read": steps * batch * patch,
        "bytes_written": 3 * state + weights,  # two checkpoints, a third while it is written; the result
        "actor_bytes": _PROCESS + state + weights + maps * (batch // config.cluster.train_workers),
    }  # fmt: skip


def _extract(config: Config, folder: RunFolder, scene: Scene) -> dict[str, Any]:
    y, x, label, split = labelled_split(config, scene)
    train = split == TRAIN
    windows, units, read, row = 0, 0, 0, 0
    passes = ((y[train], x[train]), (y, x)) if config.reads_features else ((y, x),)
    for rows, columns in passes:
        reader = WindowReader.plan(Reduced(str(folder.reduced)), config.patches, rows, columns)
        window = config.reduce.components * config.patches.side**2 * _FLOAT
        blocks = config.patches.block(np.stack([rows, columns]))
        for first, last in zip(reader.starts[:-1], reader.starts[1:], strict=True):
            windows += np.unique(blocks[:, first:last], axis=1).shape[1]
        units, row = len(reader), reader.most[1] * window
        read += units * row
    width = feature_width(config.unet, config.features.stages, config.patches.side)
    classes = len(np.unique(label))
    kept = _feature_bytes(config, classes)
    sums = 2 * classes * len(config.features.timesteps) * width * 8
    return {
        "unit": "groups", "units": units, "windows": windows,
        "unet_passes": windows * _timesteps(config), "bytes_read": read,
        "bytes_written": len(y) * (kept + 4 * 8),
        "actor_bytes": _PROCESS + _extractor_bytes(config) + 2 * row + GROUP * kept + sums,
    }  # fmt: skip


def _feature_bytes(config: Config, classes: int) -> int:
    """Features of one pixel: of itself, pooled, and its spectra."""
    diffusion = len(config.features.timesteps) * config.kept_channels(classes) * 2
    return (diffusion + config.spectra) * _FLOAT


def _classify(config: Config, scene: Scene) -> dict[str, Any]:
    _, _, label, split = labelled_split(config, scene)
    features = _feature_bytes(config, len(np.unique(label)))
    members, train = config.classifier, int((split == TRAIN).sum())
    twins = members.calibrate * (2 if config.split.protocol == "blocks" else 1)
    epochs = members.members * members.passes(train) * (1 + twins)
    return {
        "unit": "members", "units": members.members,
        "bytes_read": len(split) * features,
        "actor_bytes": _PROCESS + 3 * train * features + _expert_bytes(config, train, features),
        "member_steps": epochs * max(1, train // members.batch),
    }  # fmt: skip


def _expert_bytes(config: Config, train: int, features: int) -> int:
    """Matrices of an expert's anchors, or copies of their features in double precision."""
    anchors = min(train, MAX_ANCHORS)
    matrices = _MATRICES * anchors**2 * 8 if config.experts else 0
    return max(matrices, _COPIES * anchors * features if "features" in config.experts else 0)


def _map(config: Config, scene: Scene) -> dict[str, Any]:
    patches, tile = config.patches, config.tile
    tiles = len(TileGrid(scene.height, scene.width, tile))
    side = TileReader.side(TileGrid(0, 0, tile), patches)
    along = [
        sum(patches.blocks(min(tile, limit - start)) for start in range(0, limit, tile))
        for limit in (scene.height, scene.width)
    ]
    windows = along[0] * along[1]
    cube = config.reduce.components * side**2 * _FLOAT
    classes = scene.classes or plain_table(())
    answers = 2 * tile**2 * len(classes.codes) * _FLOAT
    pixel = classes.code_type.itemsize + 2 * _FLOAT
    passes = 2 if config.map.regions else 1  # the pixel-wise map stays beside the second one's
    region = (passes - 1) * config.supertokens.side(tile) ** 2 * _FLOAT
    return {
        "unit": "tiles", "units": passes * tiles, "windows": windows,
        "unet_passes": windows * (config.fusion.keep_timesteps or _timesteps(config)),
        "bytes_read": tiles * (cube + region * (config.reduce.components + 2)),
        # The map, overviews (a third), and two GeoTIFFs that are written plain before they are compressed.
        "bytes_written": round(
            scene.height * scene.width * (pixel * (passes + 1 / 3) + 2 * (pixel - _FLOAT))
        ),
        # The regions' actors come later, and hold nine shares and a few times the classes' probabilities.
        "actor_bytes": _PROCESS + max(
            _extractor_bytes(config) + 2 * cube + answers,
            region * (3 * config.reduce.components + 3 * 9 + 4 * len(classes.codes)),
        ),
    }  # fmt: skip


def _timesteps(config: Config) -> int:
    """Passes of the U-Net for one window."""
    return len(config.features.timesteps) if config.reads_features else 0


def unet_bytes(config: Config, side: int) -> tuple[int, int]:
    """Bytes of the U-Net's weights, and of all maps that training holds for one window of a side, float32.

    The network is built without memory (torch's device "meta") and run once with each of its decoders, of
    which a step of training holds the maps of one.
    """
    sizes: list[int] = []
    with torch.device("meta"):
        unet = make_unet(placed_unet(config), config.reduce.components)
        for layer in unet.modules():
            if not list(layer.children()):
                layer.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
        maps = unet.encode(torch.empty(1, config.reduce.components, side, side), torch.zeros(1))
        encoder, most = sum(sizes), 0
        for interval in range(config.unet.intervals):
            sizes.clear()
            unet.decoder(interval)(*maps, taps=(config.unet.stages,))
            most = max(most, sum(sizes))
    return sum(p.numel() for p in unet.parameters()) * _FLOAT, (encoder + most) * _FLOAT


def placed_unet(config: Config) -> UNetConfig:
    """The U-Net's settings, with cuts somewhere where a run is still to find them."""
    return replace(config.unet, cuts=config.unet.cuts or tuple(range(1, config.unet.intervals)))


def _extractor_bytes(config: Config) -> int:
    """Weights, again as they are laid out for reading, and the maps of one pass."""
    if not config.reads_features:
        return 0
    weights, maps = unet_bytes(config, config.patches.side)
    at_once = windows_at_once(config.features, config.patches)
    return 2 * weights + maps * at_once


def check_fits(config: Config, planned: list[Cost], machine: Machine) -> None:
    """Refuse what cannot fit.

    Raises:
        UserError: Which stage needs how much memory on a node, or how much disk; and what there is.
    """
    for cost in planned:
        at_once = -(-processes(config, cost, machine) // machine.nodes)
        needed = at_once * cost.actor_bytes + 2 * _PROCESS + KEPT_BYTES
        if needed > machine.node_bytes:
            setting = "cluster.train_workers" if cost.stage == "pretrain" else "cluster.actors"
            raise UserError(
                f"stage {cost.stage}: {at_once} processes of {shown(cost.actor_bytes)}, the command and "
                f"one that reads need {shown(needed)} of memory, a node has {shown(machine.node_bytes)}; "
                f"{_SMALLER[cost.stage]}, or fewer {setting}"
            )
    disk = sum(cost.left(cost.bytes_written) for cost in planned)
    if machine.free_bytes is not None and disk > machine.free_bytes:
        raise UserError(
            f"the run needs up to {shown(disk)} of disk, {shown(machine.free_bytes)} are free; make room or "
            "choose another --out"
        )


_SMALLER = {
    "reduce": "make the scene again with smaller chunks", "pretrain": "a smaller pretrain.batch",
    "extract": "a smaller features.batch", "classify": "a smaller split.train_fraction",
    "map": "a smaller map.tile", "report": "",
}  # fmt: skip


def processes(config: Config, cost: Cost, machine: Machine) -> int:
    """Actors or workers of a stage in the whole cluster."""
    usual = machine.gpus if machine.uses_gpu(config) else machine.cpus // config.cluster.threads
    wanted = config.cluster.actors or usual
    if cost.stage == "pretrain":
        wanted = config.cluster.train_workers
    if cost.stage == "classify":
        return min(training_places(config, machine), cost.units + len(config.experts))
    return max(1, min(wanted, cost.units))


def training_places(config: Config, machine: Machine) -> int:
    """Members that ``classify`` trains side by side, if there are so many."""
    return config.cluster.actors or (machine.gpus if machine.uses_gpu(config) else machine.cpus)


def table(planned: list[Cost], times: Mapping[str, str]) -> str:
    """A line per stage: what is done of it, and what is left to do, with its time in words."""
    lines = [
        f"{'stage':9} {'done / units':>20} {'windows':>12} {'U-Net passes':>13} {'read':>10} "
        f"{'written':>10} {'a process':>10} {'time':>14}"
    ]
    for cost in planned:
        units = f"{cost.done:,} / {cost.units:,} {cost.unit}"
        lines.append(
            f"{cost.stage:9} {units:>20} {cost.left(cost.windows):>12,} "
            f"{cost.left(cost.unet_passes):>13,} {shown(cost.left(cost.bytes_read)):>10} "
            f"{shown(cost.left(cost.bytes_written)):>10} {shown(cost.actor_bytes):>10} "
            f"{times.get(cost.stage, '-'):>14}"
        )
    return "\n".join(lines)
