"""Defaults by rule: what a scene and a machine decide, and that the user's word comes first."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import defaults
from pipeline.artifacts import RunFolder, write_json
from pipeline.classes import table_of
from pipeline.defaults import scene_rules, settle
from pipeline.errors import UserError
from pipeline.run import cli
from pipeline.scene import Scene, open_scene, write_scene
from tests.conftest import TINY


def scene(folder: Path, height: int = 20, width: int = 30, bands: int = 4, labelled: int = 100) -> Scene:
    """Two classes, half of the labelled pixels each."""
    labels = np.zeros(height * width, np.uint8)
    labels[:labelled] = 1 + np.arange(labelled) % 2
    cube = np.random.default_rng(0).random((bands, height, width), np.float32)
    classes = table_of([(1, "one", "#ff0000"), (2, "two", "#00ff00")])
    path = folder / "scene.zarr"
    write_scene(path, cube, labels=labels.reshape(height, width) if labelled else None,
                classes=classes if labelled else None)  # fmt: skip
    return open_scene(str(path))


class _Shape:
    """Of a scene: what the rules read of it."""

    def __init__(self, bands: int, height: int, width: int, labelled: int, classes: int) -> None:
        self.bands, self.height, self.width = bands, height, width
        rare = np.full(9, 200)  # a class that no split uses
        self._codes = np.concatenate([np.arange(labelled) % classes + 1, rare])

    def sampled_mean(self) -> np.ndarray:
        return np.ones(self.bands)

    def label_counts(self) -> dict[int, int]:
        return dict(enumerate(np.bincount(self._codes).tolist()[1:], 1))


@pytest.mark.parametrize(
    ("shape", "components", "patch", "steps", "share"),
    [
        ((48, 128, 128, 5_137, 10), 6, 48, 2_000, 0.05),  # the Houston 2018 crop
        ((204, 83, 86, 5_348, 6), 12, 32, 600, 0.05),  # Salinas-A
        ((103, 610, 340, 42_776, 9), 6, 48, 2_000, 0.05),
        ((145, 1_476, 256, 3_248, 14), 9, 48, 2_000, 0.11),
        ((224, 95, 400, 400, 8), 12, 32, 2_000, 0.5),
        ((4, 96, 96, 0, 1), 4, 48, 600, 0.05),  # no labels
    ],
)
def test_rules(shape: tuple[int, ...], components: int, patch: int, steps: int, share: float) -> None:
    rules = scene_rules(_Shape(*shape))  # type: ignore[arg-type]
    assert rules == {
        "reduce": {"components": components}, "patches": {"size": patch}, "pretrain": {"steps": steps},
        "split": {"train_fraction": share},
    }  # fmt: skip


def test_where_bands_are_few_those_without_data_do_not_count(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((7, 40, 50), np.float32)
    cube[[1, 4]] = np.nan
    write_scene(tmp_path / "s.zarr", cube)
    assert scene_rules(open_scene(str(tmp_path / "s.zarr")))["reduce"] == {"components": 5}
    cube[:] = np.nan
    write_scene(tmp_path / "empty.zarr", cube)
    assert scene_rules(open_scene(str(tmp_path / "empty.zarr")))["reduce"] == {"components": 6}


def test_the_user_comes_first(tmp_path: Path) -> None:
    opened, folder = scene(tmp_path), RunFolder(tmp_path / "run")
    (tmp_path / "own.yaml").write_text("pretrain: {precision: float32}\nunet: {channels: 64}\n")
    config = settle(opened, folder, tmp_path / "own.yaml", ["reduce.components=2", "seed=3"]).config
    assert (config.reduce.components, config.unet.channels, config.seed) == (2, 64, 3)
    assert (config.patches.size, config.pretrain.steps, config.split.train_fraction) == (32, 600, 0.5)
    assert config.pretrain.precision == "float32"
    (tmp_path / "own.yaml").write_text("unet: 5\n")
    with pytest.raises(UserError, match=r"own\.yaml: unet: .*found 5"):
        settle(opened, folder, tmp_path / "own.yaml", [])
    with pytest.raises(UserError, match=re.escape("patches.stride must lie in 1..32")):
        settle(opened, folder, None, ["patches.stride=40"])
    chosen = settle(opened, folder, None, ["split.train_per_class=5", "reduce.components=2"]).chosen
    assert {"split.train_fraction", "reduce.components"}.isdisjoint(chosen)
    assert chosen["patches.size"] == 32


@pytest.mark.parametrize("has", [True, False])
def test_precision_is_the_machine_s_until_a_run_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opened, folder = scene(tmp_path), RunFolder(tmp_path / "run")
    wanted, other = ("bfloat16", "float32") if has else ("float32", "bfloat16")
    config = settle(opened, folder, None, []).config
    assert (config.pretrain.precision, config.features.precision) == (wanted, wanted)
    config = settle(opened, folder, None, ["features.arithmetic=reference"]).config
    assert (config.pretrain.precision, config.features.precision) == (wanted, "float32")
    begun = settle(opened, folder, None, [f"pretrain.precision={other}"]).config
    folder.path.mkdir()
    write_json(folder.run, {"config": begun.model_dump(mode="json")})
    write_json(folder.stages, {"reduce": {"status": "done"}})
    reduced = settle(opened, folder, None, []).config
    assert reduced.pretrain.precision == wanted, "reduce may run on other machines"
    write_json(folder.stages, {"reduce": {"status": "done"}, "pretrain": {"status": "running"}})
    again = settle(opened, folder, None, []).config
    assert (again.pretrain.precision, again.features.precision) == (other, wanted), "that of the run"


def test_gpus_of_a_cluster_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cluster:
        gpus = 4

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(defaults, "joins_cluster", lambda: True)
    monkeypatch.setattr(defaults, "machine_at_hand", lambda folder: Cluster)
    opened = scene(tmp_path)
    assert settle(opened, RunFolder(tmp_path), None, []).config.features.precision == "bfloat16"
    on_cpus = settle(opened, RunFolder(tmp_path), None, ["cluster.gpu=false"]).config
    assert on_cpus.features.precision == "float32"
    Cluster.gpus = 0
    assert settle(opened, RunFolder(tmp_path), None, []).config.features.precision == "float32"


@pytest.mark.parametrize(("has", "wanted"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_that_only_emulates_bfloat16_does_not_count(
    has: bool, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    found = settle(scene(tmp_path), RunFolder(tmp_path), None, []).config
    assert (found.pretrain.precision, found.features.precision) == (wanted, wanted)


def test_a_dry_run_shows_what_the_scene_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = scene(tmp_path)
    assert cli([opened.url, "--out", str(tmp_path / "out"), "--set", "cluster.actors=1", "--dry-run"]) == 0
    output = capsys.readouterr()
    assert "components: 4" in output.out
    assert "size: 32" in output.out
    assert "chosen by rule for this scene of 4 bands and 20 x 30 pixels" in output.err
    assert "reduce.components=4" in output.err
    assert cli([opened.url, "--config", str(TINY), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "chosen by rule" not in capsys.readouterr().err, "nothing was left to the rules"
