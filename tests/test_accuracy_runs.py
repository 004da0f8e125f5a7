"""Accuracy over run folders: adopting a pretrained base, measuring a finished run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks import accuracy, peers, ssftt
from benchmarks.accuracy_table import OURS
from pipeline.artifacts import RunFolder, write_json
from tests.test_accuracy import clusters


def test_adopt_copies_the_base_once_without_checkpoints(tmp_path: Path) -> None:
    base = RunFolder(tmp_path / "base")
    (base.pretrain / "diffusion-1").mkdir(parents=True)
    (base.pretrain / "diffusion-1" / "state.pt").write_text("large")
    base.unet.write_text("weights")
    run = accuracy.adopt(base, tmp_path / "random_seed0")
    assert run.unet.read_text() == "weights"
    assert not (run.pretrain / "diffusion-1").exists()
    run.metrics.write_text("{}")
    base.unet.write_text("other")
    assert accuracy.adopt(base, run.path).unet.read_text() == "weights"
    assert run.metrics.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "random_seed0"]


def finished_run(path: Path) -> RunFolder:
    """A hand-made run folder as the pipeline leaves it, as far as the measurement reads it."""
    run = RunFolder(path)
    features, pixels = clusters()
    group = zarr.open_group(run.features, mode="w")
    for name, values in zip(
        ("y_index", "x_index", "label", "split"),
        (pixels.y % 6, pixels.x // 6, pixels.label, pixels.split),
        strict=True,
    ):
        group.create_array(name, data=values)
    group.create_array("centre", data=np.stack([features, features], axis=1).astype(np.float32))
    stage = {"wall_s": 2.0, "fingerprint": "f"}
    write_json(run.stages, {"extract": stage, "classify": stage})
    rows = [{"accuracy": value} for value in (1.0, 0.5, 0.5)]
    metrics = {
        "oa": 0.7,
        "aa": 0.6,
        "kappa": 0.5,
        "split": {},
        "n_train": 18,
        "n_test": 18,
        "overlap": 1.0,
        "ece": 0.02,
    }
    write_json(run.metrics, metrics | {"per_class": rows})
    return run


def test_measure_scores_all_on_the_same_pixels_and_keeps_the_peers(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers, "TREES", 3)
    monkeypatch.setattr(peers, "FOREST_GRID", {"min_samples_leaf": [1]})
    monkeypatch.setattr(ssftt, "TRIALS", (ssftt.Training(1e-3, 1),))
    run = finished_run(tmp_path)
    rng = np.random.default_rng(0)
    images = (rng.random((5, 6, 6), np.float32), rng.random((7, 6, 6), np.float32), 100.0)
    measured = accuracy.measure(run, images)
    assert list(measured["methods"]) == [
        OURS, peers.SPECTRA, peers.PROFILES, peers.FEATURES, peers.FOREST, peers.TRANSFORMER,
    ]  # fmt: skip
    assert measured["methods"][OURS] == {
        "oa": 0.7, "aa": 0.6, "kappa": 0.5, "per_class": [1.0, 0.5, 0.5], "seconds": 4.0,
    }  # fmt: skip
    assert measured["methods"][peers.PROFILES]["seconds"] > 100
    stored = json.loads((tmp_path / "peers.json").read_text())
    stored["methods"][peers.SPECTRA]["oa"] = 0.123
    write_json(tmp_path / "peers.json", stored)
    assert accuracy.measure(run, images)["methods"][peers.SPECTRA]["oa"] == 0.123
    write_json(tmp_path / "peers.json", stored | {"key": "of other pixels"})
    again = accuracy.measure(run, images)["methods"]
    assert again[peers.SPECTRA]["oa"] == measured["methods"][peers.SPECTRA]["oa"]
