"""--model: a scene's bands and units become the model's, or are refused; what is assumed is written down."""

import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtmsd.bands import BandMap
from mtmsd.spectral import Moments, Projection, ReduceConfig, fit_projection
from pipeline import reduction, run
from pipeline.artifacts import STAGES, RunFolder, read_json, write_json
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.model import adopt_model, match_scene, model_config, model_fingerprint
from pipeline.plan import make_plan
from pipeline.scene import Scene, open_scene, write_scene
from tests.conftest import TINY

WAVES = (500.0, 520.0, 540.0, 560.0, 580.0, 600.0)
DEAD = 4
HEIGHT, WIDTH = 40, 70


def spectra() -> np.ndarray:
    """(6, 40, 70) reflectance round 0.25, all bands alive."""
    rng = np.random.default_rng(0)
    mixed = np.einsum("bc,cyx->byx", rng.uniform(size=(6, 6)), rng.uniform(size=(6, HEIGHT, WIDTH)))
    return (mixed / 12).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a finished run of the tiny configuration leaves; band 4 of its scene held no data."""
    used = [band for band in range(6) if band != DEAD]
    moments = Moments(5)
    moments.update(spectra()[used].reshape(5, -1).T)
    folder = RunFolder(tmp_path / "model")
    folder.classifier.mkdir(parents=True)
    folder.pretrain.mkdir()
    spectral = fit_projection(moments, ReduceConfig(components=4)).as_json()
    about = {"bands_used": used, "bands_dropped": [DEAD], "bands": 6, "wavelength_nm": WAVES}
    write_json(folder.spectral, spectral | about)
    write_json(folder.run, {"config": load_config(TINY).model_dump(mode="json")})
    write_json(folder.selection, {"codes": [1, 2]})
    write_json(folder.calibration, {"temperature": 0.5})
    folder.unet.write_bytes(b"weights")
    for member in range(2):
        folder.member(member).write_bytes(b"member %d" % member)
    for name in ("features", "spectra"):
        folder.expert(name).write_bytes(name.encode())
    return folder.path


def scene(path: Path, cube: np.ndarray, nm: Any = WAVES, **packing: Any) -> Scene:
    write_scene(path, cube, wavelength_nm=nm, **packing)
    return open_scene(str(path))


def made(bands: BandMap, of: Scene) -> np.ndarray:
    return bands.apply(of.read(0, of.height, 0, of.width))


def refused(model: Path, other: Scene, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        match_scene(model, other)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("--model", str(model), other.url, *words):
        assert word in message, message


def test_the_models_own_scene_is_taken_bit_for_bit(model: Path, tmp_path: Path) -> None:
    own = spectra()
    own[DEAD] = np.nan
    other = scene(tmp_path / "s.zarr", own)
    match = match_scene(model, other)
    np.testing.assert_array_equal(made(match.bands, other), own[[0, 1, 2, 3, 5]])
    # The sampled windows overlap in so small a scene, so the level is near 1, not 1.
    assert match.assumed["level"] == pytest.approx(1, abs=0.02)
    assert match.assumed["scale"] == 1
    assert match.assumed["bands"] == {"nearest": 5}
    assert match.assumed["bands_without_data"] == [DEAD]
    assert match.assumed["notes"] == ["bands of the scene without data where it was sampled, not used: 4"]


def test_more_bands_in_another_order(model: Path, tmp_path: Path) -> None:
    order = [5, 0, 4, 1, 3, 2]
    nm = [WAVES[band] + 0.5 for band in order] + [700.0, 800.0]
    other = scene(tmp_path / "s.zarr", np.concatenate([spectra()[order], np.ones((2, HEIGHT, WIDTH))]), nm)
    match = match_scene(model, other)
    np.testing.assert_array_equal(made(match.bands, other), spectra()[[0, 1, 2, 3, 5]])
    assert match.assumed["bands_not_used"] == [2, 6, 7]
    assert match.assumed["notes"] == ["bands matched by wavelength, at most 0.5 nm apart (allowed: 1 nm)"]


def test_another_sensor_is_interpolated(model: Path, tmp_path: Path) -> None:
    nm = np.array([495.0, 515, 535, 555, 575, 595, 615])
    line = np.linspace(0.1, 0.4, 7, dtype=np.float32)[:, None, None] * np.ones((1, 8, 9), np.float32)
    other = scene(tmp_path / "s.zarr", line, nm)
    match = match_scene(model, other)
    assert match.assumed["bands"] == {"linear": 5}
    # 20 nm are 0.05, and each wanted band lies 5 nm after one of the scene's.
    expected = np.array([0.1125, 0.1625, 0.2125, 0.2625, 0.3625])
    np.testing.assert_allclose(made(match.bands, other)[:, 7, 8], expected, rtol=1e-5)
    assert match.assumed["notes"] == [
        "another sensor: the model's 5 bands are resampled, 5 by linear interpolation"
    ]


def test_a_finer_sensor_is_averaged(model: Path, tmp_path: Path) -> None:
    nm = np.arange(452.5, 653, 5)
    line = ((nm - 400) / 1000).astype(np.float32)[:, None, None] * np.ones((1, 8, 9), np.float32)
    other = scene(tmp_path / "s.zarr", line, nm)
    match = match_scene(model, other)
    assert match.assumed["bands"] == {"gaussian": 5}
    np.testing.assert_allclose(made(match.bands, other)[:, 0, 0], [0.1, 0.12, 0.14, 0.16, 0.2], rtol=1e-4)
    assert "Gaussian" in match.assumed["notes"][0]


def test_wavelengths_beyond_the_scene_are_refused(model: Path, tmp_path: Path) -> None:
    nm = [450.0, 470, 490, 510, 530, 550]
    refused(model, scene(tmp_path / "s.zarr", spectra(), nm), "2 of 5 bands (560, 600 nm)", "450 to 550 nm")


def test_without_wavelengths_bands_count(model: Path, tmp_path: Path) -> None:
    same = match_scene(model, scene(tmp_path / "six.zarr", spectra(), None))
    assert same.bands.weights == tuple(((band, 1.0),) for band in (0, 1, 2, 3, 5))
    assert same.assumed["notes"] == ["wavelengths unknown: the bands are taken in their order"]
    fewer = scene(tmp_path / "five.zarr", spectra()[:5], None)
    refused(model, fewer, "expects 6 bands", "has 5", "--wavelengths")


def test_a_band_that_is_dead_in_the_scene_alone(model: Path, tmp_path: Path) -> None:
    cube = spectra()
    cube[2] = np.nan
    filled = match_scene(model, scene(tmp_path / "with.zarr", cube))
    assert filled.bands.weights[2] == ((1, 0.5), (3, 0.5))
    assert filled.assumed["bands_without_data"] == [2]
    assert filled.assumed["bands_not_used"] == [DEAD]
    refused(model, scene(tmp_path / "without.zarr", cube, None), "needs bands [2]", "no data")


@pytest.mark.parametrize(
    ("factor", "scale"), [(1, 1), (5, 1), (1 / 30, 1), (1e4, 1e-4), (3e4, 1e-4), (100, 1e-2), (1e-3, 1e3)]
)
def test_units_differ_by_powers_of_ten(factor: float, scale: float, model: Path, tmp_path: Path) -> None:
    other = scene(tmp_path / "s.zarr", spectra() * np.float32(factor))
    match = match_scene(model, other)
    assert match.bands.scale == match.assumed["scale"] == scale
    assert match.assumed["level"] == pytest.approx(factor * scale, rel=0.02)
    expected = spectra()[[0, 1, 2, 3, 5]].astype(np.float64) * factor * scale
    np.testing.assert_allclose(made(match.bands, other), expected, rtol=1e-6)
    assert [note for note in match.assumed["notes"] if f"multiplied by {scale:g}" in note] == (
        match.assumed["notes"] if scale != 1 else []
    )


def test_counts_with_a_stated_scale_need_no_other(model: Path, tmp_path: Path) -> None:
    counts = np.round(spectra() * 1e4).astype(np.uint16)
    assert match_scene(model, scene(tmp_path / "s.zarr", counts, scale_factor=1e-4)).bands.scale == 1


@pytest.mark.parametrize("factor", [1e7, 1e-7])
def test_values_that_no_unit_explains_are_refused(factor: float, model: Path, tmp_path: Path) -> None:
    other = scene(tmp_path / "s.zarr", spectra() * np.float32(factor))
    refused(model, other, "mean value", "--scale-factor")


def test_a_scene_without_data_where_it_is_sampled(model: Path, tmp_path: Path) -> None:
    cube = np.full((6, 200, 40), np.nan, np.float32)
    cube[:, 40:44] = 0.2
    match = match_scene(model, scene(tmp_path / "s.zarr", cube))
    assert (match.bands.scale, match.assumed["level"], match.assumed["notes"]) == (1, None, [])


def test_at_most_sixteen_windows_are_read(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    other = scene(tmp_path / "s.zarr", np.full((6, 300, 500), 0.2, np.float32))
    read, asked = Scene.read, []
    monkeypatch.setattr(Scene, "read", lambda self, *window: asked.append(window) or read(self, *window))
    match_scene(model, other)
    assert len(asked) == len(set(asked)) == 16
    assert {(y1 - y0, x1 - x0) for y0, y1, x0, x1 in asked} == {(32, 32)}
    assert max(y1 for _, y1, _, _ in asked) == 300
    assert max(x1 for *_, x1 in asked) == 500


def test_the_read_path_gives_the_models_components(model: Path, tmp_path: Path) -> None:
    counts = np.concatenate([spectra()[::-1] * 1e4, np.full((1, HEIGHT, WIDTH), np.nan)]).astype(np.float32)
    other = scene(tmp_path / "s.zarr", counts, [*WAVES[::-1], 900.0])
    folder = _adopted(model, other, tmp_path / "out")
    batch = {"cube": counts[None], "unit": [0], "pixels": [1], "bytes_read": [1]}
    row = reduction.project(batch, spectral=read_json(folder.spectral))
    own = Projection.from_json(read_json(model / "spectral.json"))
    expected = own.apply(spectra()[[0, 1, 2, 3, 5]])
    np.testing.assert_allclose(row["reduced"][0], expected, atol=1e-4)


def _adopted(model: Path, other: Scene, out: Path) -> RunFolder:
    folder = RunFolder(out)
    folder.path.mkdir(exist_ok=True)
    write_json(folder.run, {"scene": {"url": other.url}})
    adopt_model(model, folder, other)
    return folder


def test_a_run_folder_stands_alone(model: Path, tmp_path: Path) -> None:
    other = scene(tmp_path / "s.zarr", spectra() * 1e4)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    folder = _adopted(model, other, tmp_path / "out")
    run = read_json(folder.run)
    assert run["scene"] == {"url": other.url}
    assert run["assumed"] == json.loads(json.dumps(match_scene(model, other).assumed))
    assert run["assumed"]["scale"] == 1e-4
    assert folder.unet.read_bytes() == b"weights"
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    write_json(folder.run, read_json(folder.run) | {"config": read_json(model / "run.json")["config"]})
    shutil.rmtree(model)
    # A mapped run is a model, too: its trained parts count, not how this scene's bands were made.
    third = scene(tmp_path / "t.zarr", spectra())
    assert match_scene(folder.path, third).bands.scale == 1
    again = _adopted(folder.path, third, tmp_path / "third")
    assert read_json(again.spectral)["from_scene"]["scale"] == 1


def test_adopting_again_writes_nothing_and_another_model_replaces_all(model: Path, tmp_path: Path) -> None:
    other = scene(tmp_path / "s.zarr", spectra())
    folder = _adopted(model, other, tmp_path / "out")

    def state() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in folder.path.rglob("*") if p.is_file() and p != folder.run}

    before = state()
    adopt_model(model, folder, other)
    assert state() == before
    changed = Path(shutil.copytree(model, tmp_path / "changed"))
    RunFolder(changed).unet.write_bytes(b"other weights")
    assert model_fingerprint(changed) != model_fingerprint(model)
    adopt_model(changed, folder, other)
    assert folder.unet.read_bytes() == b"other weights"
    assert not list(folder.path.rglob("*.partial"))


@pytest.mark.parametrize("twice", [False, True])
def test_every_stage_finds_the_models_parts(
    twice: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a new folder, and when the reduction of an earlier attempt is there but not finished."""
    other, out = scene(tmp_path / "s.zarr", 2 * spectra()), RunFolder(tmp_path / "out")
    seen: list[str] = []

    def stage(name: str) -> dict[str, float]:
        if twice and not seen:
            seen.append("stopped")
            raise KeyboardInterrupt
        spectral = read_json(out.spectral)
        assert spectral["loadings"] == read_json(model / "spectral.json")["loadings"]
        assert spectral["from_scene"]["scale"] == 1
        assert out.unet.exists()
        assert read_json(out.calibration) == {"temperature": 0.5}
        seen.append(name)
        return {"wall_s": 1.0, "pixels": 1}

    runners = {name: partial(stage, name) for name in STAGES}
    monkeypatch.setattr(run, "_runners", lambda *_: runners)
    monkeypatch.setattr("pipeline.cluster.ray_session", nullcontext)
    monkeypatch.setattr("pipeline.cluster.share_out", lambda _: None)
    monkeypatch.setattr("pipeline.trained.check_trained", lambda *_: None)
    arguments = [other.url, "--out", str(out.path), "--model", str(model)]
    if twice:
        assert run.cli(arguments) == 1
    assert run.cli(arguments) == 0
    assert seen[-3:] == ["reduce", "map", "report"]
    assert read_json(out.run)["assumed"]["notes"] is not None


@pytest.mark.parametrize(
    "part",
    [
        "spectral.json", "run.json", "pretrain/unet.safetensors", "classifier/member_0.safetensors",
        "classifier/member_1.safetensors",
        "classifier/calibration.json", "classifier/expert_spectra.safetensors",
    ],
)  # fmt: skip
def test_unfinished_models_are_refused(part: str, model: Path) -> None:
    (model / part).unlink()
    with pytest.raises(UserError, match=f"{part} is missing"):
        model_config(model, None, [])


def test_a_model_of_before_there_were_experts_has_none(model: Path) -> None:
    told = read_json(model / "run.json")
    del told["config"]["classifier"]["experts"]
    write_json(model / "run.json", told)
    for name in ("features", "spectra"):
        RunFolder(model).expert(name).unlink()
    assert model_config(model, None, []).experts == ()


def test_tokens_cannot_learn_without_training_pixels(model: Path) -> None:
    tokens = ["map.regions=supertokens", "supertokens.steps=9"]
    with pytest.raises(UserError, match=r"supertokens\.steps=0, found 9"):
        model_config(model, None, tokens)
    assert model_config(model, None, tokens[:1]).map.regions == "supertokens"


def test_only_the_map_can_be_configured(model: Path) -> None:
    assert model_config(model, None, ["map.tile=32"]).map.tile == 32
    with pytest.raises(UserError, match=r"made with seed=0, found seed=1; with --model only map\.\*"):
        model_config(model, None, ["seed=1"])
    with pytest.raises(UserError, match=r"made with unet\.channels=\d+, found unet\.channels=96"):
        model_config(model, None, ["unet.channels=96"])


def test_a_configuration_beside_a_model_may_say_what_the_model_says(model: Path, tmp_path: Path) -> None:
    own, file = model_config(model, None, []), tmp_path / "own.yaml"
    file.write_text(f"seed: {own.seed}\nunet: {{channels: {own.unet.channels}}}\nmap: {{tile: 32}}\n")
    assert model_config(model, str(file), [f"seed={own.seed}"]) == model_config(model, None, ["map.tile=32"])
    file.write_text("patches: {stride: 1}\n")
    with pytest.raises(UserError, match=r"found patches\.stride=1"):
        model_config(model, str(file), [])


def test_the_plan_refuses_before_any_work(model: Path, tmp_path: Path) -> None:
    other = scene(tmp_path / "s.zarr", spectra(), [w + 300 for w in WAVES])
    folder = RunFolder(tmp_path / "out")
    config = model_config(model, None, [])
    with pytest.raises(UserError, match="5 of 5 bands"):
        make_plan(config, folder, other, None, None, model)
    fits = scene(tmp_path / "t.zarr", spectra())
    assert make_plan(config, folder, fits, None, None, model).todo == ("reduce", "map", "report")
    assert not folder.path.exists()


def test_a_model_from_before_profiles_has_none(model: Path) -> None:
    assert model_config(model, None, []).features.profiles == (1, 2, 4)
    about = json.loads((model / "run.json").read_text())
    del about["config"]["features"]["profiles"]
    write_json(model / "run.json", about)
    assert model_config(model, None, []).features.profiles == ()
