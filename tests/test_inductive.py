"""Inductive splits: what lies in test blocks changes nothing that learns without labels."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from mtmsd.split import TEST, HiddenBlocks
from pipeline import pretrain
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import load_config
from pipeline.labels import hidden_blocks, labelled_split
from pipeline.run import cli
from pipeline.scene import open_scene
from tests.conftest import TINY, refused

BLOCKS = ["split.protocol=blocks", "split.block=16", "split.min_class=20", "split.untested=keep"]
INDUCTIVE = [*BLOCKS, "split.inductive=true"]


def arguments(scene: Path, out: Path, settings: list[str], *more: str) -> list[str]:
    chosen = [part for setting in settings for part in ("--set", setting)]
    return [str(scene), "--config", str(TINY), "--out", str(out), *chosen, *more]


def hidden_in(scene: Path) -> HiddenBlocks:
    hidden = hidden_blocks(load_config(TINY, INDUCTIVE), open_scene(str(scene)))
    assert hidden is not None
    return hidden


def noisy(scene: Path, copy: Path, where: np.ndarray) -> Path:
    """A copy of the scene with noise on the data of some places."""
    shutil.copytree(scene, copy)
    array = zarr.open_group(copy, mode="r+", use_consolidated=False)["reflectance"]
    values = array[...]
    there = values[:, where] < 60_000
    noise = np.random.default_rng(0).integers(0, 3_000, there.shape).astype(values.dtype)
    values[:, where] += np.where(there, noise, 0).astype(values.dtype)
    array[...] = values
    return copy


@pytest.mark.cluster
def test_test_blocks_reach_neither_reduction_nor_the_training_workers(
    tiny_scene: Path, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of the next test: what the workers are given reads hidden blocks as no data."""
    hidden = hidden_in(tiny_scene)
    inside = noisy(tiny_scene, tmp_path / "inside.zarr", hidden.mask(0, 96, 0, 150))
    runs = {
        "plain": (RunFolder(tmp_path / "plain"), tiny_scene),
        "inside": (RunFolder(tmp_path / "in"), inside),
    }
    for folder, scene in runs.values():
        assert cli(arguments(scene, folder.path, INDUCTIVE, "--until", "reduce")) == 0
    plain, noised = (folder for folder, _ in runs.values())
    assert read_json(noised.spectral) == read_json(plain.spectral)
    told: dict[str, Any] = {}

    def reached(loop: object, settings: dict[str, Any], **_: object) -> int:
        told.update(settings)
        return int(settings["config"]["pretrain"]["steps"])

    monkeypatch.setattr(pretrain, "fit", reached)
    monkeypatch.setattr(pretrain, "_publish", lambda *_: None)
    pretrain.run(plain.config(), plain, open_scene(str(tiny_scene)), "fingerprint")
    assert told["reduced"].hidden == hidden


@pytest.mark.long
def test_test_blocks_reach_neither_reduction_nor_pretraining(
    tiny_scene: Path, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = hidden_in(tiny_scene).mask(0, 96, 0, 150)
    assert 0.1 < mask.mean() < 0.9
    inside = noisy(tiny_scene, tmp_path / "inside.zarr", mask)
    outside = noisy(tiny_scene, tmp_path / "outside.zarr", ~mask)
    runs = {}
    for name, scene, last in (
        ("plain", tiny_scene, "extract"), ("inside", inside, "pretrain"), ("outside", outside, "reduce"),
    ):  # fmt: skip
        runs[name] = RunFolder(tmp_path / name)
        assert cli(arguments(scene, runs[name].path, INDUCTIVE, "--until", last)) == 0
    spectral = {name: read_json(run.spectral) for name, run in runs.items()}
    assert spectral["inside"] == spectral["plain"]
    assert spectral["outside"] != spectral["plain"]
    others = load_file(runs["inside"].unet)
    for name, value in load_file(runs["plain"].unet).items():
        assert torch.equal(others[name], value), name

    plain = runs["plain"]
    features = zarr.open_group(plain.features, mode="r")
    y, x, split = (np.asarray(features[name][...]) for name in ("y_index", "x_index", "split"))
    assert np.array_equal(mask[y, x], split == TEST), "the blocks hidden are those of the split that scores"
    assert not np.isnan(np.asarray(features["centre"][...])).any(), "features are of every pixel"

    other = arguments(tiny_scene, plain.path, [*INDUCTIVE, "split.seed=9"], "--from", "extract")
    refused(capsys, other, "stage reduce was made with split.seed = null", "choose another --out")


def test_labels_that_cannot_serve_are_told_before_anything_is_learnt(
    tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = ["split.protocol=blocks", "split.block=200", "split.inductive=true"]
    refused(capsys, arguments(tiny_scene, tmp_path / "out", lone, "--until", "pretrain"), "in 1 block")
    assert not (tmp_path / "out" / "spectral.json").exists()


def test_the_early_split_is_the_later_one(tiny_scene: Path) -> None:
    config = load_config(TINY, INDUCTIVE)
    y, x, _, split = labelled_split(config, open_scene(str(tiny_scene)))
    assert np.array_equal(hidden_in(tiny_scene).mask(0, 96, 0, 150)[y, x], split == TEST)
