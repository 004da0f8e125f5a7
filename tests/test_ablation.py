"""The ablation and the lengths of pretraining: the same pixels for all, kept for the next time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablation, pretraining_length
from benchmarks.accuracy_table import OURS
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.classes import table_of
from pipeline.config import Config, load_config
from pipeline.scene import write_scene
from tests.test_accuracy_runs import SETTINGS, labelled

SHORT = [s for s in SETTINGS if s != "split.seed=3"]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Six by six pixels with the labels of ``labelled``."""
    label = labelled().label.reshape(6, 6).astype(np.uint8)
    cube = np.random.default_rng(0).random((6, 6, 6), np.float32)
    classes = table_of([(2, "a", "#ff0000"), (5, "b", "#00ff00"), (9, "c", "#0000ff")])
    write_scene(tmp_path / "s.zarr", cube, labels=label, classes=classes)
    return tmp_path / "s.zarr"


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were asked for; they hold a file in place of a U-Net."""
    asked: list[str] = []

    def until(command: list[str], run: RunFolder, settings: list[str], last: str) -> None:
        asked.append(run.path.name)
        run.unet.parent.mkdir(parents=True, exist_ok=True)
        run.unet.write_text(run.path.name)
        write_json(run.run, {"config": Config().model_dump(mode="json")})
        write_json(run.path / "stages.json", {"pretrain": {"wall_s": 7.0}})
        losses = [(5, 9.0), (60, 0.5), (100, 0.25)]
        write_json(run.pretrain / "history.json", [{"step": k, "loss": loss} for k, loss in losses])

    for module in (ablation, pretraining_length):
        monkeypatch.setattr(module, "pipeline_until", until)
    monkeypatch.setattr(ablation.Labelled, "read", staticmethod(lambda base, scene, config: labelled()))
    return asked


def test_changes_stand_beside_the_defaults_and_are_kept(
    scene: Path, pretrained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    changes = "one member,untrained U-Net"
    arguments = ["--scene", str(scene), "--out", str(tmp_path / "out"), "--seeds", "0,1", *settings]
    arguments += ["--protocols", "random", "--changes", changes]
    assert ablation.cli(arguments) == 0
    assert pretrained == ["base", "base", "base_untrained_u-net"]
    report = read_json(tmp_path / "out" / "ablation.json")["protocols"]["random"]
    assert [run["seed"] for run in report["runs"]] == [0, 1]
    for run in report["runs"]:
        assert list(run["methods"]) == [OURS, "one member", "untrained U-Net"]
        assert run["methods"][OURS]["oa"] > 0.8
    gap = report["summary"]["ours_minus"]["one member"]["oa"]["mean"]
    each = [run["methods"][OURS]["oa"] - run["methods"]["one member"]["oa"] for run in report["runs"]]
    assert gap == pytest.approx(np.mean(each))
    page = (tmp_path / "out" / "ablation.md").read_text()
    assert page.startswith("# Ablation on s\n")
    assert "| one member" in page
    assert "calibration" not in page, "nothing is calibrated"

    def scored_again(*_: Any) -> None:
        raise AssertionError("scores are kept")

    monkeypatch.setattr(ablation, "score", scored_again)
    assert ablation.cli(arguments) == 0
    assert read_json(tmp_path / "out" / "ablation.json")["protocols"]["random"]["runs"] == report["runs"]


def test_lengths_of_pretraining(scene: Path, pretrained: list[str], tmp_path: Path) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    out, picture = tmp_path / "out", tmp_path / "lengths.png"
    arguments = [
        "--scene",
        str(scene),
        "--out",
        str(out),
        "--protocols",
        "random",
        "--seeds",
        "0,1",
        *settings,
    ]
    assert pretraining_length.cli([*arguments, "--steps", "100,9", "--picture", str(picture)]) == 0
    assert pretrained == ["base_32_9", "base_32_100"]
    short, full = read_json(out / "pretraining_length.json")["rows"]
    assert (short["steps"], full["steps"], full["seconds"]) == (9, 100, 7.0)
    assert full["loss"] == pytest.approx((0.5 + 0.25) / 2), "of the last fifty steps"
    assert len(full["oa"]["random, features alone"]) == 2
    page = (out / "pretraining_length.md").read_text()
    assert "| 32 | 100 | 7 | 0.375 |" in page
    assert Image.open(picture).size[0] > 300
    assert pretraining_length.cli([*arguments, "--steps", "0"]) == 2
    assert pretraining_length.cli([*arguments, "--protocols", "inductive"]) == 2


def test_every_change_is_a_setting_that_differs() -> None:
    plain = load_config(None)
    for name in ablation.names_of(None)[1:]:
        changed = load_config(None, ["classifier.calibrate=false", *ablation.CHANGES[name]])
        assert changed != load_config(None, ["classifier.calibrate=false"]), name
    assert plain == load_config(None, ablation.CHANGES[OURS])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--changes", "no colours"], "expected some of"),
        (["--protocols", "inductive"], "share one pretraining"),
        (["--seeds", "0,0"], "--seeds 0,0"),
    ],
)
def test_mistakes_end_with_one_line(
    more: list[str], said: str, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.cli(["--scene", str(scene), "--out", str(tmp_path / "out"), *more]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert not (tmp_path / "out").exists()
