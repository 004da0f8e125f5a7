"""Accuracy on one split: all methods on the same pixels, kept for the next time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import accuracy, peers, ssftt
from benchmarks.accuracy_table import OURS
from benchmarks.published import PUBLISHED, as_published
from mtmsd.split import make_split
from pipeline.artifacts import RunFolder, write_json
from pipeline.classes import table_of
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.scene import open_scene, write_scene

METHODS = [OURS, peers.SPECTRA, peers.PROFILES, peers.FEATURES, peers.FOREST, peers.TRANSFORMER]
SETTINGS = [
    "split.train_per_class=6", "split.min_class=2", "split.seed=3", "classifier.members=2",
    "classifier.epochs=60", "classifier.learning_rate=0.01", "classifier.experts=[features]",
]  # fmt: skip


@pytest.fixture
def short(monkeypatch: Any) -> None:
    """Peers in a moment."""
    monkeypatch.setattr(peers, "TREES", 3)
    monkeypatch.setattr(peers, "FOREST_GRID", {"min_samples_leaf": [1]})
    monkeypatch.setattr(ssftt, "TRIALS", (ssftt.Training(1e-3, 1),))
    monkeypatch.setattr(accuracy.Learner, "map_s", lambda *_: 1.0)  # there is no U-Net


def labelled() -> accuracy.Labelled:
    """Thirty-six pixels of a 6 x 6 scene in three classes that our features tell apart."""
    rng = np.random.default_rng(0)
    y, x = (axis.ravel() for axis in np.mgrid[:6, :6])
    label = np.repeat([2, 5, 9], 12)
    centre = rng.normal(size=(36, 2, 5)).astype(np.float32)
    centre += 3 * label[:, None, None]
    kinds = (centre, rng.normal(size=(36, 2, 5)), rng.normal(size=(36, 4)))
    centre_t, pooled, spectra = (torch.from_numpy(kind.astype(np.float32)) for kind in kinds)
    return accuracy.Labelled(y, x, label, (centre_t, pooled, spectra), 1.0)


def test_pixels_know_their_block_where_test_pixels_lie_in_blocks() -> None:
    blocks = load_config(None, [*SETTINGS, "split.protocol=blocks", "split.block=2"])
    pixels = accuracy.Draw.of(blocks, labelled(), None).pixels
    assert pixels.block is not None
    assert len(np.unique(pixels.block)) == 9
    assert accuracy.Draw.of(load_config(None, SETTINGS), labelled(), None).pixels.block is None


def test_measure_scores_all_on_the_same_pixels_and_keeps_them(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cache = RunFolder(tmp_path / "base"), tmp_path / "random_seed3.json"
    base.unet.parent.mkdir(parents=True)
    base.unet.write_text("weights")
    rng = np.random.default_rng(0)
    images = (rng.random((5, 6, 6), np.float32), rng.random((7, 6, 6), np.float32), 100.0)
    config = load_config(None, SETTINGS)
    found = accuracy.measure(config, base, labelled(), images, cache)
    assert list(found["methods"]) == METHODS
    assert found["n_train"] == found["n_test"] == 18
    assert found["methods"][OURS]["oa"] > 0.8
    assert found["methods"][peers.SPECTRA]["oa"] < 0.8
    assert 0 <= found["methods"][OURS]["ece"] <= 1
    assert sum(row[2] for row in found["methods"][OURS]["reliability"]) == 18
    assert found["split"]["train_per_class"] == 6
    assert found["methods"][peers.PROFILES]["seconds"] > 100

    stored = json.loads(cache.read_text())
    stored["methods"][peers.SPECTRA]["oa"] = 0.123
    del stored["methods"][peers.FEATURES]
    write_json(cache, stored)
    asked: list[int] = []
    monkeypatch.setattr(accuracy, "as_published", lambda config, pixels: asked.append(pixels) or config)
    others = replace(labelled(), features=(*labelled().features[:2], torch.zeros(36, 0)))
    again = accuracy.measure(config, base, labelled(), images, cache, others)["methods"]
    assert set(again) == {*METHODS, PUBLISHED}, "what is missing is scored, the rest kept"
    assert (again[PUBLISHED]["oa"] > 0.5, asked) == (True, [18]), "training pixels decide its learning rate"
    assert again[peers.FEATURES]["oa"] == found["methods"][peers.FEATURES]["oa"]
    assert accuracy.measure(config, base, labelled(), images, cache)["methods"][peers.SPECTRA]["oa"] == 0.123
    relabelled = replace(labelled(), labels="others")
    again = accuracy.measure(config, base, relabelled, images, cache, methods=[OURS])["methods"]
    assert again[OURS]["commit"]
    assert peers.SPECTRA not in json.loads(cache.read_text())["methods"], "scores of other labels"
    stored["methods"][peers.PROFILES] |= {"oa": 0.123, "code": "that of an earlier version"}
    write_json(cache, stored)
    again = accuracy.measure(config, base, labelled(), images, cache)["methods"]
    assert (again[peers.SPECTRA]["oa"], again[peers.PROFILES]["oa"] == 0.123) == (0.123, False)
    for other, weights in ((["split.seed=4"], "weights"), (["split.seed=3"], "others")):
        base.unet.write_text(weights)
        again = accuracy.measure(load_config(None, [*SETTINGS, *other]), base, labelled(), images, cache)
        assert again["methods"][peers.SPECTRA]["oa"] != 0.123
        write_json(cache, stored)


def test_features_are_read_again_for_another_network_or_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = RunFolder(tmp_path / "base")
    base.unet.parent.mkdir(parents=True)
    labels = np.repeat(np.array([1, 2], np.uint8), 8).reshape(4, 4)
    cube = np.random.default_rng(0).random((3, 4, 4), np.float32)
    write_scene(tmp_path / "s.zarr", cube, labels=labels)
    scene, calls = open_scene(str(tmp_path / "s.zarr")), []

    def features(learner: Any, patches: Any, y: Any, x: Any) -> tuple[torch.Tensor, ...]:
        calls.append(len(y))
        return torch.zeros(len(y), 1, 2), torch.zeros(len(y), 1, 2), torch.zeros(len(y), 3)

    monkeypatch.setattr(accuracy.Learner, "features", features)
    monkeypatch.setattr("pipeline.readers.Reduced.has_data", lambda _, y, x: np.ones(len(y), bool))
    for weights, timesteps, read in (("a", 50, 1), ("a", 50, 1), ("b", 50, 2), ("b", 60, 3), ("a", 50, 3)):
        base.unet.write_text(weights)
        config = load_config(None, [f"features.timesteps=[{timesteps}]"])
        write_json(base.run, {"config": config.model_dump(mode="json")})
        assert len(accuracy.Labelled.read(base, scene).y) == 16
        assert calls == [16] * read


def test_the_published_method_keeps_network_and_windows(tmp_path: Path) -> None:
    config = load_config(None, ["patches.stride=4", "unet.channels=32", "features.precision=bfloat16"])
    published = as_published(config)
    assert (published.patches, published.unet) == (config.patches, config.unet)
    assert len(published.features.timesteps) == 19
    assert published.features.precision == "bfloat16"
    assert (published.classifier.vote, published.classifier.calibrate) == ("majority", False)
    assert published.features.spectra == ()
    assert published.classifier.patience == 1000


@pytest.mark.parametrize(("pixels", "rate"), [(2139, 1e-3), (25243, 1e-4)])
def test_the_published_rate_is_the_authors_for_so_many_pixels(pixels: int, rate: float) -> None:
    assert as_published(load_config(None), pixels).classifier.learning_rate == rate


@pytest.mark.parametrize(
    "settings",
    [
        ["classifier.kind=ssftt", "features.spectra=[]"],
        ["fusion.kind=hyperfeatures", "features.timesteps=auto"],
    ],
)
def test_what_the_comparison_does_not_follow_is_refused(settings: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmarks\.parts"):
        accuracy.Learner(tmp_path, load_config(None, settings))


def test_a_protocol_that_the_labels_cannot_serve_is_refused() -> None:
    config = load_config(None, ["split.protocol=blocks", "split.guard_px=24"])
    with pytest.raises(UserError, match=r"split\.seed=7: "):
        labelled().split(config.split, 7)


def test_splits_are_those_of_the_pipeline() -> None:
    """Drawn over the pixels row by row, in whatever order they are kept."""
    kept, order = labelled(), np.random.default_rng(1).permutation(36)
    turned = replace(kept, y=kept.y[order], x=kept.x[order], label=kept.label[order])
    config = load_config(None, SETTINGS).split
    expected = make_split(kept.y, kept.x, kept.label, config, 5)
    assert np.array_equal(turned.split(config, 5), expected[order])


def test_every_inductive_split_has_a_pretraining_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another U-Net for each; the other protocols share one."""
    monkeypatch.setattr(accuracy.Learner, "map_s", lambda *_: 1.0)
    asked: dict[str, list[str]] = {}

    def until(command: list[str], run: RunFolder, settings: list[str], last: str) -> None:
        asked[run.path.name] = settings
        run.unet.parent.mkdir(parents=True, exist_ok=True)
        run.unet.write_text(run.path.name)
        config = load_config(None).model_dump(mode="json")
        write_json(run.run, {"config": config, "scene": {"bands": 5}})
        write_json(run.path / "stages.json", {name: {"wall_s": 2.0} for name in ("reduce", "pretrain")})

    read = []
    monkeypatch.setattr(accuracy, "pipeline_until", until)
    monkeypatch.setattr(
        accuracy.Labelled, "read", lambda run, scene: read.append(run.path.name) or labelled()
    )
    cube = np.random.default_rng(0).random((5, 6, 6), np.float32)
    monkeypatch.setattr(accuracy, "_images", lambda scene, run: (cube, cube, 0.0))
    label = labelled().label.reshape(6, 6).astype(np.uint8)
    classes = table_of([(2, "a", "#ff0000"), (5, "b", "#00ff00"), (9, "c", "#0000ff")])
    write_scene(tmp_path / "s.zarr", cube, labels=label, classes=classes)
    settings = [*(s for s in SETTINGS if not s.startswith("split.seed")), "split.block=2"]
    arguments = ["--scene", str(tmp_path / "s.zarr"), "--out", str(tmp_path / "out"), "--seeds", "0,1"]
    arguments += ["--methods", "svm", *(part for setting in settings for part in ("--set", setting))]
    assert accuracy.cli([*arguments, "--protocols", "inductive,blocks"]) == 0
    assert read == ["base", "base_inductive_seed0", "base_inductive_seed1"]
    for seed in (0, 1):
        assert {"split.inductive=true", f"split.seed={seed}"} <= set(asked[f"base_inductive_seed{seed}"])
    report = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert report["shared"] == {"seconds": 3 * (2 + 2 + 1), "bases": 3}
    own, shared = (report["protocols"][name]["runs"] for name in ("inductive", "blocks"))
    assert [run["test_pixels"] for run in own] == [run["test_pixels"] for run in shared]

    part = labelled()
    fewer = replace(part, y=part.y[1:], x=part.x[1:], label=part.label[1:])
    monkeypatch.setattr(accuracy.Labelled, "read", lambda run, scene: fewer)
    assert accuracy.cli([*arguments, "--protocols", "inductive"]) == 2
    assert "expected data at all labelled pixels, found them at 35" in capsys.readouterr().err
