"""The whole chain on a tiny synthetic scene, on Ray: what users may rely on."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import torch
import xarray as xr
import zarr
from safetensors.torch import load_file

from benchmarks.learn import Learner
from mtmsd.steps import draw_interval
from pipeline import map as map_stage
from pipeline.artifacts import STAGES, RunFolder, read_json, write_json
from pipeline.checkpoints import checkpoints
from pipeline.config import Config
from pipeline.run import cli
from pipeline.scene import open_scene
from pipeline.trained import load_ensemble, load_unet
from tests.conftest import DEAD_BAND, TINY
from tests.faults import Driver, assert_same, marked

pytestmark = pytest.mark.cluster


def _map(folder: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(folder / "map.zarr", mode="r", use_consolidated=False)
    return {name: np.asarray(group[name][...]) for name in ("class", "confidence", "entropy")}


def _state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_stage_is_recorded(finished: Path) -> None:
    records = read_json(finished / "stages.json")
    assert list(records) == list(STAGES)
    for stage, record in records.items():
        assert record["status"] == "done", stage
        assert record["wall_s"] > 0, stage
        assert record["pixels"] > 0, stage
        assert record["pixels_per_s"] == pytest.approx(record["pixels"] / record["wall_s"], rel=0.01)
        assert record["peak_rss_bytes"] > 50e6, stage
        assert record["bytes_read"] > 0, stage
        assert record["bytes_written"] > 0, stage
    assert records["map"]["pixels"] == 96 * 150
    run = read_json(finished / "run.json")
    assert run["config"]["unet"]["channels"] == 32
    assert run["versions"]["ray"]
    assert run["from"] is None
    assert run["bands_dropped"] == [DEAD_BAND]


def test_dead_band_is_left_out_and_said(finished: Path) -> None:
    spectral = read_json(finished / "spectral.json")
    assert spectral["bands_dropped"] == [DEAD_BAND]
    assert spectral["valid_pixels"] == 96 * 150 - 32 * 64 - 7
    reduced = np.asarray(zarr.open_group(finished / "reduced.zarr", mode="r")["reduced"][...])
    valid = reduced[:, ~np.isnan(reduced).any(axis=0)].astype(np.float64)
    np.testing.assert_allclose(valid.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(valid.std(axis=1), 1, rtol=1e-5)


def test_no_data_stays_no_data(finished: Path) -> None:
    result = _map(finished)
    empty = np.zeros((96, 150), bool)
    empty[64:, :64], empty[0, :7] = True, True
    assert (result["class"][empty] == 0).all()
    assert (result["class"][~empty] != 0).all()
    for name in ("confidence", "entropy"):
        assert np.array_equal(np.isnan(result[name]), empty), name


def test_map_has_the_scenes_codes_and_sane_values(finished: Path, tiny_scene: Path) -> None:
    result, codes = _map(finished), open_scene(str(tiny_scene)).classes.codes
    assert set(np.unique(result["class"])) <= {0, *codes}
    inside = ~np.isnan(result["confidence"])
    assert (result["confidence"][inside] >= 1 / len(codes) - 1e-6).all()
    assert (result["confidence"][inside] <= 1 + 1e-6).all()
    assert (result["entropy"][inside] >= 0).all()
    assert (result["entropy"][inside] <= np.log(len(codes)) + 1e-5).all()


def test_map_opens_with_crs_transform_and_names(finished: Path, tiny_scene: Path) -> None:
    scene = open_scene(str(tiny_scene))
    opened = xr.open_zarr(finished / "map.zarr", decode_coords="all")
    assert opened.rio.crs.to_epsg() == 32615
    assert opened["class"].attrs["flag_values"] == list(scene.classes.codes)
    with rasterio.open(finished / "map.tif") as tif:
        assert tif.crs.to_epsg() == 32615
        assert tuple(tif.transform)[:6] == pytest.approx(scene.transform)
        assert np.array_equal(tif.read(1), _map(finished)["class"])
        color = tif.colormap(1)[scene.classes.codes[0]]
        assert "#{:02x}{:02x}{:02x}".format(*color[:3]) == scene.classes.colors[0]
    assert "<html" in (finished / "report.html").read_text()


def test_metrics_count_test_pixels_only(finished: Path) -> None:
    metrics = read_json(finished / "metrics.json")
    group = zarr.open_group(finished / "features.zarr", mode="r")
    split = np.asarray(group["split"][...])
    confusion = np.asarray(metrics["confusion"])
    assert metrics["n_train"] == (split == 0).sum()
    assert metrics["n_test"] == (split == 1).sum() == confusion.sum()
    assert metrics["oa"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert sum(row["n_test"] for row in metrics["per_class"]) == metrics["n_test"]
    assert 0 <= metrics["overlap"] <= 1
    assert metrics["split"]["inductive"] is False


def test_map_is_the_classifiers_answer(finished: Path) -> None:
    group = zarr.open_group(finished / "features.zarr", mode="r")
    config = Config.model_validate(read_json(finished / "run.json")["config"])
    ensemble = load_ensemble(config, RunFolder(finished), gpu=False)
    kinds = (torch.from_numpy(np.asarray(group[name][...])) for name in ("centre", "pooled", "spectra"))
    answer = ensemble(*kinds)
    at = np.asarray(group["y_index"][...]), np.asarray(group["x_index"][...])
    codes = np.asarray(read_json(finished / "classifier" / "selection.json")["codes"])
    result = _map(finished)
    assert np.array_equal(codes[answer.position_N.numpy()], result["class"][at])
    np.testing.assert_allclose(answer.confidence_N.numpy(), result["confidence"][at], atol=1e-5)
    metrics = read_json(finished / "metrics.json")
    assert metrics["map_ece"] == pytest.approx(metrics["ece"], abs=1e-6)
    assert metrics["map_oa"] == pytest.approx(metrics["oa"])  # these windows do not blend


def test_the_benchmarks_learner_is_the_pipeline(finished: Path) -> None:
    group = zarr.open_group(finished / "features.zarr", mode="r")
    y, x, label, split = (np.asarray(group[n][...]) for n in ("y_index", "x_index", "label", "split"))
    learner = Learner(finished)
    features = learner.features(learner.config.patches, y, x)
    learnt = learner.learn(features, np.unique(label, return_inverse=True)[1], split, (y, x))
    metrics = read_json(finished / "metrics.json")
    assert learnt.selection.as_json() == {
        key: read_json(finished / "classifier" / "selection.json")[key] for key in ("centre", "pooled")
    }
    assert learnt.confusion.finish()["confusion"] == metrics["confusion"]
    assert learnt.reliability.error() == pytest.approx(metrics["ece"], abs=1e-4)
    assert learner.map_s(learnt) > 0
    assert learnt.coverage.finish() == {
        key: metrics["sets"][key] for key in ("coverage", "mean_size", "single")
    }


def test_running_again_touches_nothing(finished: Path, tiny_scene: Path) -> None:
    about = read_json(finished / "run.json")
    del about["bands_dropped"]  # as a kill between the stage's end and this note leaves it
    write_json(finished / "run.json", about)
    before, begun = _state(finished), time.monotonic()
    assert cli([str(tiny_scene), "--config", str(TINY), "--out", str(finished)]) == 0
    assert time.monotonic() - begun < 15
    after = _state(finished)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {str(finished / "run.json")}
    assert read_json(finished / "run.json")["bands_dropped"] == [DEAD_BAND]


@pytest.mark.parametrize(("actors", "of_a_round"), [(2, 4), pytest.param(1, 20_000, marks=pytest.mark.long)])
def test_any_number_of_actors_and_rounds_gives_the_same_map(
    actors: int,
    of_a_round: int,
    finished: Path,
    run_copy: Path,
    tiny_scene: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(map_stage, "ROUND", of_a_round)
    arguments = [
        str(tiny_scene),
        "--config",
        str(TINY),
        "--out",
        str(run_copy),
        "--from",
        "map",
        "--until",
        "map",
    ]
    (run_copy / "map.tif").unlink()
    assert cli([*arguments, "--set", f"cluster.actors={actors}"]) == 0
    for name, values in _map(run_copy).items():
        assert np.array_equal(values, _map(finished)[name], equal_nan=True), name
    assert (run_copy / "map.tif").exists()


def test_only_missing_tiles_are_made(finished: Path, run_copy: Path, tiny_scene: Path) -> None:
    records = read_json(run_copy / "stages.json")
    records["map"]["status"] = "running"
    del records["report"]
    (run_copy / "stages.json").write_text(json.dumps(records))
    group = zarr.open_group(run_copy / "map.zarr", mode="r+", use_consolidated=False)
    group["class"][:64, :64] = 1  # tile 0: as if it had never been written
    group["confidence"][:64, 64:128] = 0.5  # tile 1 is marked done: must not be touched
    (run_copy / ".done" / "map" / "0").unlink()
    assert cli([str(tiny_scene), "--config", str(TINY), "--out", str(run_copy)]) == 0
    result, whole = _map(run_copy), _map(finished)
    assert np.array_equal(result["class"], whole["class"])
    assert (result["confidence"][:64, 64:128] == 0.5).all()


def test_supertokens_vote_on_the_finished_pixels(finished: Path, run_copy: Path, tiny_scene: Path) -> None:
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(run_copy), "--until", "map"]
    arguments += ["--set", "map.regions=supertokens"]
    assert cli([*arguments, "--from", "map"]) == 0
    group = zarr.open_group(run_copy / "map.zarr", mode="r+", use_consolidated=False)
    for name, values in _map(finished).items():
        assert np.array_equal(group[f"{name}_pixel"][...], values, equal_nan=True), name
    voted, pixelwise = _map(run_copy), _map(finished)
    assert (voted["class"] != pixelwise["class"]).mean() > 0.01
    assert np.array_equal(voted["class"] == 0, pixelwise["class"] == 0)
    assert np.array_equal(np.isnan(voted["entropy"]), pixelwise["class"] == 0)
    metrics, before = read_json(run_copy / "metrics.json"), read_json(finished / "metrics.json")
    assert metrics["map_oa_pixel"] == before["map_oa"]
    confusion = np.asarray(metrics["map_confusion"])
    assert metrics["map_oa"] == pytest.approx(np.trace(confusion) / metrics["n_test"])
    with rasterio.open(run_copy / "map.tif") as tif:
        assert np.array_equal(tif.read(1), voted["class"])
    assert read_json(run_copy / "stages.json")["map"]["pixels"] == 96 * 150


@pytest.mark.long
@pytest.mark.parametrize("steps", [0, 20])
def test_the_vote_of_supertokens_goes_on_and_can_be_taken_back(
    steps: int, finished: Path, run_copy: Path, tiny_scene: Path
) -> None:
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(run_copy), "--until", "map"]
    arguments += ["--set", f"supertokens.steps={steps}", "--set", "map.regions=supertokens"]
    assert cli([*arguments, "--from", "map"]) == 0
    assert RunFolder(run_copy).tokens.exists() == (steps > 0)
    group = zarr.open_group(run_copy / "map.zarr", mode="r+", use_consolidated=False)
    voted, before = _map(run_copy), read_json(finished / "metrics.json")
    records = read_json(run_copy / "stages.json")
    records["map"]["status"] = "running"
    (run_copy / "stages.json").write_text(json.dumps(records))
    group["class"][:64, :64] = 1  # tile 0 of the vote: as if it had never been written
    group["entropy_pixel"][0, 20] = 7.0  # of the pixel-wise map, which is done: must not be touched
    (run_copy / ".done" / "map" / str(len(list((run_copy / ".done" / "map").iterdir())) // 2)).unlink()
    assert cli([*arguments, "--set", "cluster.actors=1"]) == 0
    assert group["entropy_pixel"][0, 20] == 7.0
    for name, values in _map(run_copy).items():
        assert np.array_equal(values, voted[name], equal_nan=True), name
    without = [*arguments[:-3], "supertokens.steps=0", "--set", "map.regions=null", "--from", "map"]
    assert cli(without) == 0
    assert not RunFolder(run_copy).tokens.exists()
    assert read_json(run_copy / "metrics.json") == before, "nothing of the vote is left"


def test_killed_and_asked_to_end_during_the_map(
    finished: Path, run_copy: Path, tiny_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The short choice of tests/test_faults.py, in the cluster of this module."""
    for stage in ("report", "map"):
        RunFolder(run_copy).forget(stage)
    markers = run_copy / ".done" / "map"
    driver = Driver(tiny_scene, run_copy)
    while driver.process.poll() is None and not list(markers.glob("*")):
        time.sleep(0.01)
    driver.process.kill()
    assert driver.wait() == -9, driver.said
    assert (run_copy / ".lock").exists()
    before = marked(run_copy)
    driver = Driver(tiny_scene, run_copy)
    assert driver.wait_for("^map "), driver.said
    driver.process.terminate()
    assert driver.wait() == 1, driver.said
    assert driver.said.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "took over the lock of process" in driver.said
    assert not (run_copy / ".lock").exists()
    assert cli([str(tiny_scene), "--config", str(TINY), "--out", str(run_copy)]) == 0
    assert before.items() <= marked(run_copy).items(), "finished tiles are not made again"
    assert_same(run_copy, finished)


def test_pretraining_repeats_bit_for_bit(finished: Path, run_copy: Path, tiny_scene: Path) -> None:
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(run_copy), "--from", "pretrain"]
    assert cli([*arguments, "--until", "pretrain"]) == 0
    mine, theirs = (load_file(run / "pretrain/unet.safetensors") for run in (run_copy, finished))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.long
def test_training_repeats_bit_for_bit(finished: Path, run_copy: Path, tiny_scene: Path) -> None:
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(run_copy), "--from", "pretrain"]
    assert cli([*arguments, "--until", "classify"]) == 0
    names = ["pretrain/unet.safetensors", *(f"classifier/member_{i}.safetensors" for i in range(2))]
    for name in (*names, *(f"classifier/expert_{kind}.safetensors" for kind in ("features", "spectra"))):
        mine, theirs = load_file(run_copy / name), load_file(finished / name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name
    whole = read_json(finished / "metrics.json")
    del whole["map_oa"], whole["map_ece"]  # of a stage that this run has not reached
    assert read_json(run_copy / "metrics.json") == whole
    assert not (run_copy / "map.zarr").exists(), "results of stages that follow must not stay"


@pytest.mark.long
def test_multistage_finds_its_intervals_resumes_and_extracts(
    finished: Path, run_copy: Path, tiny_scene: Path
) -> None:
    """Two workers; the second half of the training again, from the checkpoint of the first."""
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(run_copy)]
    arguments += ["--set", "unet.kind=multistage", "--set", "unet.cut_window=4"]
    assert cli([*arguments, "--from", "pretrain", "--until", "pretrain"]) == 0
    folder = RunFolder(run_copy)
    whole, cuts = load_file(folder.unet), read_json(folder.pretrain / "cuts.json")
    unet = load_unet(folder.unet)
    assert (unet.config.kind, list(unet.config.cuts)) == ("multistage", cuts)
    assert 0 < cuts[0] < cuts[1] < 1000
    trained = {unet.config.interval(draw_interval(0, step, cuts, 1000)[0]) for step in range(6)}
    assert len(trained) > 1
    for interval in range(3):
        last = whole[f"decoders.{interval}.out.2.weight"]  # zero until it is trained
        assert bool(last.any()) == (interval in trained)
    folder.unet.unlink()
    checkpoints(folder.pretrain)[-1].unlink()
    records = read_json(folder.stages)
    records["pretrain"]["status"] = "running"
    folder.stages.write_text(json.dumps(records))
    assert cli([*arguments, "--until", "extract"]) == 0
    again = load_file(folder.unet)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    mine, single = (zarr.open_group(run / "features.zarr", mode="r") for run in (run_copy, finished))
    for kind in ("centre", "pooled"):
        found = np.asarray(mine[kind][...])
        assert found.shape == single[kind].shape
        assert np.isfinite(found).all()


def test_a_model_maps_another_scene(finished: Path, tiny_scene: Path, tmp_path: Path) -> None:
    scene = tmp_path / "other.zarr"
    shutil.copytree(tiny_scene, scene)
    group = zarr.open_group(scene, mode="r+", use_consolidated=False)
    group["labels"][:] = 0
    arguments = [str(scene), "--out", str(tmp_path / "out"), "--model", str(finished)]
    assert cli(arguments) == 0
    for name, values in _map(tmp_path / "out").items():
        assert np.array_equal(values, _map(finished)[name], equal_nan=True), name
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert cli(arguments) == 0
