"""How long the stages will take: a piece of each stage's work is timed with untrained parts and multiplied.

A piece is a tile read and taken into the moments (``reduce``), a training step of one worker (``pretrain``),
a window at one timestep (``extract``; ``map``: with the head), a step of one member (``classify``). Some
seconds in all. Not in the times: Ray's start and its cost for each unit (most of ``reduce``, whose tiles
are quickly done), the writing of results, and that busy neighbours share memory.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch

from mtmsd.classifier import Sizes
from mtmsd.diffusion import Schedule
from mtmsd.ensemble import Ensemble, assemble
from mtmsd.experts import MAX_RANK, Committee, Expert, input_width
from mtmsd.features import Extractor, Readout, stage_widths
from mtmsd.heads import make_member
from mtmsd.interpolation import Features
from mtmsd.members import Pixels, train_member
from mtmsd.mosaic import Mosaic
from mtmsd.purify import Selection
from mtmsd.spectral import Moments
from mtmsd.training import make_optimizer, pretrain_step
from mtmsd.unet import UNet
from mtmsd.unets import make_unet
from pipeline.budget import Cost, placed_unet, processes, training_places
from pipeline.cluster import joins_cluster, ray_session
from pipeline.config import Config
from pipeline.machine import Machine
from pipeline.readers import SceneReader, reduced_grid
from pipeline.scene import Scene

Clock = Callable[[], float]
_COLD_S = 10.0
"""Work that takes longer is not repeated: the first call's own costs no longer matter."""
_REPEATED_S, _REPEATS = 2.0, 5
"""Calls after the first: for so long, at most so many. The shortest counts: neighbours are busy at times."""
_PATIENCE_S = 60.0
_STEP_PATCHES = 2
_MEMBER_STEPS = 5
_HEAD_PIXELS = 1024
_ANCHORS = 500
"""Of an expert: training pixels of a small scene."""


def estimates(
    config: Config, scene: Scene, planned: Sequence[Cost], machine: Machine, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Seconds that the cluster at hand will need for what is left of each stage.

    In a cluster the pieces are timed on one of its nodes; without one that answers in time, nothing.
    """
    gpu = machine.uses_gpu(config)
    workers = max(config.cluster.train_workers, machine.nodes)
    threads = config.cluster.train_threads or max(1, machine.cpus // workers)
    stages = [cost.stage for cost in planned if _pieces_left(cost)]
    if stages and joins_cluster():
        with ray_session():
            remote: Any = ray.remote(num_cpus=0, num_gpus=int(gpu))
            found = remote(piece_seconds).remote(config, scene, stages, gpu=gpu, train_threads=threads)
            ready, _ = ray.wait([found], timeout=_PATIENCE_S + 2 * _COLD_S * len(stages))
            pieces = ray.get(found) if ready else {}
    else:
        pieces = piece_seconds(config, scene, stages, gpu=gpu, train_threads=threads, clock=clock)
    return {
        cost.stage: _pieces_left(cost) * pieces[cost.stage] / _side_by_side(config, cost, machine)
        for cost in planned
        if cost.stage in pieces
    }


def _pieces_left(cost: Cost) -> int:
    pieces = {
        "reduce": 2 * cost.units, "pretrain": cost.units, "extract": cost.unet_passes,
        "classify": cost.member_steps, "map": cost.unet_passes,
    }  # fmt: skip
    return cost.left(pieces.get(cost.stage, 0))


def _side_by_side(config: Config, cost: Cost, machine: Machine) -> int:
    """Processes that share a stage's pieces; a training step is one piece for all workers together."""
    if cost.stage in ("reduce", "classify"):  # members' steps are the pieces, experts have none
        places = machine.cpus if cost.stage == "reduce" else training_places(config, machine)
        return min(places, cost.units)
    return 1 if cost.stage == "pretrain" else processes(config, cost, machine)


def said(seconds: Mapping[str, float]) -> str:
    """What the estimate is worth, and the sum."""
    if not seconds:
        return "time: not estimated, nothing is left, or no node answered in time"
    return (
        f"time: {spoken(sum(seconds.values()))} in all; an estimate from some seconds of untrained parts, on "
        "the machine as busy as it is now, without Ray's start, some ten seconds a stage in which processes "
        "start, what follows the last tile, and the report"
    )


def piece_seconds(
    config: Config,
    scene: Scene,
    stages: Iterable[str],
    *,
    gpu: bool,
    train_threads: int,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Seconds of one piece of work of some stages, done by one process on this machine.

    Args:
        config: Of the run.
        scene: To be classified.
        stages: Which; those without a piece (``report``) are left out.
        gpu: Whether actors and training workers compute on a GPU.
        train_threads: Torch threads of a training worker.
        clock: Tells seconds.
    """
    device = torch.device("cuda" if gpu else "cpu")
    ways: dict[str, Callable[[], Work]] = {
        "reduce": lambda: _tile(scene),
        "extract": lambda: _windows(config, device, None),
        "classify": lambda: _member(config, scene, device),
        "map": lambda: _windows(config, device, _classes(scene)),
    }
    threads, before = {"pretrain": train_threads, "classify": 1}, torch.get_num_threads()
    found = {}
    try:
        for stage in stages:
            torch.set_num_threads(threads.get(stage, config.cluster.threads))
            if stage == "pretrain":
                found[stage] = _step_seconds(config, device, clock)
            elif stage in ways:
                work, pieces = ways[stage]()
                found[stage] = timed(work, device, clock) / pieces
    finally:
        torch.set_num_threads(before)
    return found


def timed(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of one call: the shortest after the first, unless that took long."""

    def once() -> float:
        begun = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - begun

    if (first := once()) > _COLD_S:
        return first
    found = [once()]
    while sum(found) < _REPEATED_S and len(found) < _REPEATS:
        found.append(once())
    return min(found)


Work = tuple[Callable[[], object], float]
"""Something to time, and how many pieces it is."""


def _tile(scene: Scene) -> Work:
    grid = reduced_grid(scene)
    reader, middle = SceneReader(scene, grid), len(grid) // 2

    def work() -> None:
        cube = np.nan_to_num(reader(middle)["cube"])  # a tile without data would cost nothing
        Moments(len(cube)).update(cube.reshape(len(cube), -1).T)

    return work, 1


def _step_seconds(config: Config, device: torch.device, clock: Clock) -> float:
    """A step of a worker's whole share, from steps of few patches and of twice as many: a part of it is
    the same for any number."""
    share = config.pretrain.batch // config.cluster.train_workers
    few = min(_STEP_PATCHES, share)
    seconds = timed(_training(config, device, few), device, clock)
    if few < share:
        twice = timed(_training(config, device, 2 * few), device, clock)
        seconds += (share / few - 1) * max(0.0, twice - seconds)
    return seconds


def _training(config: Config, device: torch.device, few: int) -> Callable[[], object]:
    unet = _unet(config, device)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = replace(config.pretrain, batch=few)
    optimizer, schedule = make_optimizer(unet, settings), Schedule(config.diffusion)
    patches = torch.randn(few, config.reduce.components, *[config.patches.size] * 2, device=device)

    def work() -> None:
        pretrain_step(unet, optimizer, schedule, settings, patches, seed=0, step=0, share=slice(0, few))

    return work


def _windows(config: Config, device: torch.device, classes: int | None) -> Work:
    """One pass of windows at one timestep; with ``classes``, the ensemble's answer for their pixels too."""
    features, patches = replace(config.features, timesteps=config.features.timesteps[:1]), config.patches
    unet, ensemble, readout = _unet(config, device), None, None
    if classes is not None:
        sizes = _sizes(config, 1, classes)
        members = [
            make_member(config.classifier, config.fusion, sizes) for _ in range(config.classifier.members)
        ]
        ensemble = assemble([member.eval().to(device) for member in members], config.classifier.vote)
        ensemble = Committee(ensemble, _experts(config, sizes, device)) if config.experts else ensemble
        kept, patches = range(config.kept_channels(classes)), patches.wide
        readout = Readout(kept, kept, ensemble.mean_2TK[0], ensemble.scale_2TK[0])
    extract = Extractor(unet, Schedule(config.diffusion), features, patches, readout, config.patch)
    windows = torch.randn(extract.batch, config.reduce.components, patches.side, patches.side)

    def work() -> None:
        found = extract(windows)
        if ensemble is not None:
            _answer(config, ensemble, found)

    return work, len(windows)


def _experts(config: Config, sizes: Sizes, device: torch.device) -> dict[str, Expert]:
    """With the usual number of training pixels, and inputs as for one timestep."""
    widths = {name: input_width(name, sizes) for name in config.experts}
    return {
        name: Expert(width, min(width, MAX_RANK), _ANCHORS, sizes.classes).to(device)
        for name, width in widths.items()
    }


@torch.inference_mode()
def _answer(config: Config, ensemble: Ensemble, features: Features) -> None:
    """What the map stage makes of windows: each in the middle of a tile of three blocks."""
    side, votes = 3 * config.patches.stride, ensemble.window_votes(features.pooled_NTK)
    mosaic, at_once = Mosaic(side, side, ensemble.values, config.patches), config.map.pixels or _HEAD_PIXELS
    for window in range(len(features.pooled_NTK)):
        mosaic.add_window(1, 1, features, votes, window, ensemble, at_once)


def _member(config: Config, scene: Scene, device: torch.device) -> Work:
    few, classes = config.classifier.batch * _MEMBER_STEPS, max(2, _classes(scene))
    sizes = _sizes(config, len(config.features.timesteps), classes)
    shape = few, sizes.timesteps, config.kept_channels(classes)
    spectra = torch.randn(few, sizes.spectra)
    drawn = torch.randn(shape), torch.randn(shape), spectra, torch.arange(few) % classes
    pixels = Pixels(*(kind.to(device) for kind in drawn))
    settings = replace(config.classifier, epochs=1)

    def work() -> None:
        train_member(settings, config.fusion, pixels, sizes, seed=0, member=0)

    return work, _MEMBER_STEPS


def _unet(config: Config, device: torch.device) -> UNet:
    return make_unet(placed_unet(config), config.reduce.components).to(device)


def _sizes(config: Config, timesteps: int, classes: int) -> Sizes:
    """Of a member, as if purification kept the first channels."""
    widths = stage_widths(config.unet, config.features.stages, config.patches.side)
    stages = Selection(tuple(range(config.kept_channels(classes))), ()).per_stage(widths)
    return Sizes(timesteps, stages, classes, config.spectra)


def _classes(scene: Scene) -> int:
    return len(scene.classes.codes) if scene.classes else 2


def spoken(seconds: float) -> str:
    """A duration for people, no finer than an estimate deserves: ``about 40 min``."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 5400)):
        if seconds < limit:
            return f"about {max(1.0, seconds / length):.2g} {unit}"
    hours = seconds / 3600
    return f"about {hours:.2g} h" if hours < 10 else f"about {hours:,.0f} h"
