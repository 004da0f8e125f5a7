"""The whole chain on Ray with other kinds: hyperfeatures, ssftt, and ssftt beside diffusion features."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config
from pipeline.run import cli
from pipeline.trained import load_ensemble, load_members
from tests.conftest import TINY

pytestmark = pytest.mark.cluster

PATCH = ["classifier.patch=7", "features.spectra=[]"]


def _run(scene: Path, out: Path, *settings: str) -> Config:
    overrides = [part for setting in settings for part in ("--set", setting)]
    assert cli([str(scene), "--config", str(TINY), "--out", str(out), *overrides]) == 0
    assert {record["status"] for record in read_json(out / "stages.json").values()} == {"done"}
    return Config.model_validate(read_json(out / "run.json")["config"])


def _map(folder: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(folder / "map.zarr", mode="r", use_consolidated=False)
    return {name: np.asarray(group[name][...]) for name in ("class", "confidence")}


def _assert_map_is_the_answer(config: Config, out: Path, steps: list[int]) -> None:
    group = zarr.open_group(out / "features.zarr", mode="r")
    centre, pooled, spectra = (
        torch.from_numpy(np.asarray(group[name][...])) for name in ("centre", "pooled", "spectra")
    )
    answer = load_ensemble(config, RunFolder(out), gpu=False)(centre[:, steps], pooled[:, steps], spectra)
    at = np.asarray(group["y_index"][...]), np.asarray(group["x_index"][...])
    codes = np.asarray(read_json(out / "classifier" / "selection.json")["codes"])
    mapped = _map(out)
    np.testing.assert_allclose(answer.confidence_N.numpy(), mapped["confidence"][at], atol=1e-5)
    assert np.array_equal(codes[answer.position_N.numpy()], mapped["class"][at])


@pytest.mark.long
def test_hyperfeatures_that_keep_one_timestep(tiny_scene: Path, ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = _run(tiny_scene, out, "fusion.kind=hyperfeatures", "fusion.width=8", "fusion.keep_timesteps=1")
    kept = read_json(out / "classifier" / "mixing.json")
    assert kept["timesteps"] == [50, 200]
    assert np.shape(kept["weights"]) == (2, 2)
    assert np.sum(kept["weights"]) == pytest.approx(1)
    assert kept["kept"] == [kept["timesteps"][int(np.sum(kept["weights"], axis=1).argmax())]]
    shown = read_json(out / "metrics.json")["mixing"]  # of the members, which read what remains
    assert shown["timesteps"] == kept["kept"]
    tables = [m.dy_att.mixing_weights() for m in load_members(config, RunFolder(out), gpu=False)]
    np.testing.assert_allclose(shown["weights"], torch.stack(tables).mean(dim=0).detach(), atol=1e-6)
    assert re.search("learned weight of each timestep", (out / "report.html").read_text())
    _assert_map_is_the_answer(config, out, [kept["timesteps"].index(kept["kept"][0])])
    again = tmp_path / "again"
    assert cli([str(tiny_scene), "--out", str(again), "--model", str(out)]) == 0
    for name, values in _map(again).items():
        assert np.array_equal(values, _map(out)[name], equal_nan=True), name


@pytest.mark.long
def test_patches_beside_diffusion_features(tiny_scene: Path, ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = _run(tiny_scene, out, "classifier.kind=diffusion_ssftt", *PATCH)
    _assert_map_is_the_answer(config, out, [0, 1])
    assert "mixing" not in read_json(out / "metrics.json")


@pytest.mark.long
def test_patches_alone_need_no_unet(tiny_scene: Path, ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = _run(tiny_scene, out, "classifier.kind=ssftt", *PATCH)
    assert not (out / "pretrain").exists()
    _assert_map_is_the_answer(config, out, [0, 1])
    again = tmp_path / "again"
    assert cli([str(tiny_scene), "--out", str(again), "--model", str(out)]) == 0
    assert np.array_equal(_map(again)["class"], _map(out)["class"])
