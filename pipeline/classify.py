"""Stage ``classify``: train the ensemble on the training pixels' features, score it on the test pixels."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import zarr
from ray.actor import ActorHandle

from mtmsd.calibration import Reliability, fit_temperature
from mtmsd.conformal import Coverage, HeldOut, class_sets, joint_threshold
from mtmsd.metrics import Confusion
from mtmsd.split import TEST, TRAIN
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.cluster import Shares, share_out
from pipeline.config import Config
from pipeline.labels import overlap_of
from pipeline.member_training import FEATURES, keep_timesteps, mixing_of, steps_of, train_members
from pipeline.progress import metered, peak_rss
from pipeline.readers import GROUP
from pipeline.train import fit
from pipeline.trained import (
    is_trained,
    load_ensemble,
    load_members,
    read_timesteps,
    read_weights,
    trainees,
)
from pipeline.units import UnitSource, in_order, read_units

_GROUPS_EACH = 32
"""Chunks of pixels that are worth the start of another process that scores them."""


def run(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Write ``classifier/member_*.safetensors`` and ``metrics.json``; returns what was measured.

    Members are trained side by side, one torch thread each, so their weights depend on the seed alone.
    """
    shares = share_out(config.cluster)
    parts = trainees(config)
    untrained = [part for part in parts if not is_trained(config, folder, part)]
    split = _column(folder, "split")
    groups = -(-len(split) // GROUP)
    total = len(parts) + groups
    with metered("classify", total, "units") as (meter, record):
        meter.skip.remote(len(parts) - len(untrained))
        if config.fusion.keep_timesteps is not None and not folder.mixing.exists():
            _train(keep_timesteps, config, folder, shares, [2 * config.classifier.members], meter)
        if untrained:
            _train(train_members, config, folder, shares, untrained, meter)
        _write_history(config, folder)
        if config.classifier.calibrate:
            _calibrate(config, folder)
        codes = np.asarray(read_json(folder.selection)["codes"])
        source = UnitSource("classify: features", range(groups), _FeatureGroups(folder), 1 << 20)
        scorers = -(-groups // _GROUPS_EACH)
        rows = shares.through_actors(
            read_units(source), scorers, _Scorer, (config, folder, shares.gpu, codes)
        )
        confusion, reliability, coverage = Confusion(len(codes)), Reliability(), Coverage()
        for row in in_order(rows.iter_rows()):
            confusion.counts += row["confusion"]
            reliability.sums_B3 += row["reliability"]
            coverage.sums_4 += row["coverage"]
            meter.add.remote(1, int(row["pixels"]), int(row["bytes_read"]), 0, int(row["peak_rss"]))
        found = _metrics(config, folder, codes, confusion, reliability)
        if config.classifier.calibrate:
            found["sets"] = read_json(folder.calibration)["sets"] | coverage.finish()
        write_json(folder.metrics, found)
        return record()


def _train(
    loop: Callable[[dict[str, Any]], None],
    config: Config,
    folder: RunFolder,
    shares: Shares,
    members: Sequence[int | str],
    meter: ActorHandle[Any],
) -> None:
    """Train members and experts with Ray Train, as many at a time as there are CPUs, GPUs or, where their
    number is set, actors."""
    places = shares.actors if shares.num_gpus or shares.fixed else int(ray.cluster_resources().get("CPU", 1))
    fit(
        loop,
        {
            "config": config.model_dump(mode="json"), "folder": str(folder.path),
            "members": list(members), "meter": meter,
        },
        name=f"members-{os.urandom(4).hex()}",
        storage=folder.classifier / "ray_train",
        workers=max(1, min(len(members), places)),
        resources={"CPU": 0.5, "GPU": shares.num_gpus},
    )  # fmt: skip


def _column(folder: RunFolder, name: str) -> np.ndarray[Any, Any]:
    group: Any = zarr.open_group(str(folder.features), mode="r", use_consolidated=False)
    return np.asarray(group[name][...])


def _calibrate(config: Config, folder: RunFolder) -> None:
    """Write the temperature that fits the held-out training pixels, and the threshold of sets of classes."""
    members, level = range(config.classifier.members), config.classifier.set_level
    stored = [read_weights(folder.held_out(member))[0] for member in members]
    held_out = HeldOut(*(torch.cat([part[name] for part in stored]) for name in HeldOut._fields))
    margins = [float(read_weights(folder.member(member))[1]["margin"]) for member in members]
    temperature = fit_temperature(held_out.logits, held_out.position, float(np.mean(margins)))
    experts = [read_weights(folder.held_out(name))[0]["logits"] for name in config.experts]
    threshold = joint_threshold(held_out, temperature, experts, level)
    about = {"temperature": temperature, "held_out_pixels": int((held_out.kind == 0).sum())}
    write_json(folder.calibration, about | {"sets": {"level": level, "threshold": threshold}})


def _write_history(config: Config, folder: RunFolder) -> None:
    history = []
    for member in range(config.classifier.members):
        epochs = json.loads(read_weights(folder.member(member))[1]["history"])
        history += [{"member": member, "epoch": i + 1} | epoch for i, epoch in enumerate(epochs)]
    write_json(folder.classifier / "history.json", history)


class _FeatureGroups:
    """Unit = chunk of features.zarr."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __call__(self, unit: int) -> dict[str, Any]:
        group: Any = zarr.open_group(str(self._folder.features), mode="r", use_consolidated=False)
        rows = slice(unit * GROUP, (unit + 1) * GROUP)
        row = {name: np.asarray(group[name][rows]) for name in (*FEATURES, "label", "split")}
        size = sum(row[name].nbytes for name in FEATURES)
        return row | {"pixels": len(row["label"]), "bytes_read": size}


class _Scorer:
    """Confusion of the test pixels of a chunk."""

    def __init__(self, config: Config, folder: RunFolder, gpu: bool, codes: np.ndarray[Any, Any]) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._ensemble, self._codes = load_ensemble(config, folder, gpu), codes
        calibrated = config.classifier.calibrate
        self._threshold = read_json(folder.calibration)["sets"]["threshold"] if calibrated else 0.0
        self._steps = steps_of(config, read_timesteps(config, folder))
        self._device = "cuda" if gpu else "cpu"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        test = batch["split"][0] == TEST
        confusion, reliability, coverage = Confusion(len(self._codes)), Reliability(), Coverage()
        if test.any():
            centre, pooled, spectra = (
                torch.tensor(batch[name][0][test], device=self._device) for name in FEATURES
            )
            evidence = self._ensemble.pixel_evidence(centre[:, self._steps], pooled[:, self._steps], spectra)
            answer = self._ensemble.decide(evidence)
            predicted = answer.position_N.cpu().numpy()
            truth = np.searchsorted(self._codes, batch["label"][0][test])
            confusion.update(truth, predicted)
            reliability.update(answer.confidence_N.cpu().numpy(), predicted == truth)
            sets = class_sets(self._ensemble.mean_probabilities(evidence).cpu(), self._threshold)
            coverage.update(sets, torch.from_numpy(truth))
        carried = {key: batch[key] for key in ("unit", "bytes_read")}
        return carried | {
            "confusion": confusion.counts[None], "reliability": reliability.sums_B3[None],
            "coverage": coverage.sums_4[None],
            "pixels": np.array([test.sum()]), "peak_rss": np.array([peak_rss()]),
        }  # fmt: skip


def split_facts(config: Config, n_train: int, n_test: int) -> dict[str, Any]:
    """``split`` of ``metrics.json``; with so many of each class, the share that trains is what came of it."""
    protocol = config.split
    seed = config.seed if protocol.seed is None else protocol.seed
    share: dict[str, Any] = {"train_fraction": protocol.train_fraction}
    if protocol.train_per_class is not None:
        share = {"train_fraction": n_train / (n_train + n_test), "train_per_class": protocol.train_per_class}
    return {
        "protocol": protocol.protocol, "seed": seed, "guard_px": protocol.guard_px,
        "inductive": protocol.inductive, **share,
    }  # fmt: skip


def _metrics(
    config: Config,
    folder: RunFolder,
    codes: np.ndarray[Any, Any],
    confusion: Confusion,
    reliability: Reliability,
) -> dict[str, Any]:
    y, x, label, split = (_column(folder, name) for name in ("y_index", "x_index", "label", "split"))
    scores = confusion.finish()
    names = {code: name for code, name, _ in read_json(folder.selection)["classes"]}
    per_class = [
        {
            "code": int(code), "name": names[int(code)],
            "n_train": int(((label == code) & (split == TRAIN)).sum()),
            "n_test": int(((label == code) & (split == TEST)).sum()),
            "accuracy": accuracy,
        }
        for code, accuracy in zip(codes, scores["per_class"], strict=True)
    ]  # fmt: skip
    n_train, n_test = int((split == TRAIN).sum()), int((split == TEST).sum())
    members = load_members(config, folder, gpu=False)
    mixing = mixing_of(read_timesteps(config, folder), config.features.stages, members)
    return {
        "split": split_facts(config, n_train, n_test),
        "n_train": n_train, "n_test": n_test,
        "oa": scores["oa"], "aa": scores["aa"], "kappa": scores["kappa"],
        "per_class": per_class, "confusion": scores["confusion"],
        "ece": reliability.error(), "reliability": reliability.rows(),
        "overlap": overlap_of(config, y, x, split),
    } | ({"mixing": mixing} if mixing else {})  # fmt: skip
