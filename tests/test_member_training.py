"""What twins are not given, and what calibration makes of their answers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from mtmsd.calibration import fit_temperature
from mtmsd.classifier import Sizes
from mtmsd.conformal import set_threshold
from mtmsd.experts import pool
from mtmsd.members import Pixels
from mtmsd.split import TEST, TRAIN
from pipeline import classify, member_training
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config, load_config
from pipeline.trained import is_trained, read_weights, trainees

SIZES = Sizes(1, (4,), 2, 0)
MEMBERS = [
    "classifier.members=2", "classifier.epochs=3", "classifier.hidden=[4]", "features.spectra=[]"
]  # fmt: skip
BLOCKS = [*MEMBERS, "split.protocol=blocks", "split.block=4"]
SIDE = 16


@pytest.fixture
def trained(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Config, RunFolder, Pixels]:
    """Every second pixel of a square trains, two classes by column; two members and their twins."""
    config, folder = load_config(None, request.param), RunFolder(tmp_path)
    folder.classifier.mkdir()
    y, x = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    split = np.where((y + x) % 2, TRAIN, TEST)
    group = zarr.create_group(folder.features)
    for name, column in (("y_index", y), ("x_index", x), ("split", split)):
        group.create_array(name, data=column)
    position = torch.from_numpy(x[split == TRAIN] // (SIDE // 2))
    centre = torch.randn((len(position), 1, 4), generator=torch.Generator().manual_seed(0))
    centre[:, 0, 0] += 3 * position
    pixels = Pixels(centre, torch.zeros_like(centre), torch.zeros((len(position), 0)), position)
    folds = member_training._folds(config, folder, pixels)
    for member in range(config.classifier.members):
        held = [fold == member for fold in folds]
        member_training._write_held_out(config, folder, pixels, SIZES, held, member)
        about = {"margin": "3.0" if member else "1.0"}
        member_training._save(folder.member(member), {"w": torch.zeros(1)}, about)
    for name in config.experts:
        member_training._write_expert(config, folder, pixels, SIZES, folds, name)
    return config, folder, pixels


@pytest.mark.parametrize(("trained", "kinds"), [(MEMBERS, 1), (BLOCKS, 2)], indirect=["trained"])
def test_every_training_pixel_is_held_out_once_by_each_kind_of_twin(
    trained: tuple[Config, RunFolder, Pixels], kinds: int
) -> None:
    _, folder, pixels = trained
    stored = [read_weights(folder.held_out(member))[0] for member in range(2)]
    for kind in range(kinds):
        position = torch.cat([part["position"][part["kind"] == kind] for part in stored])
        assert torch.equal(position.sort().values, pixels.position_N.sort().values)
    assert all(set(part["kind"].tolist()) == set(range(kinds)) for part in stored)


@pytest.mark.parametrize("trained", [[*MEMBERS, "classifier.members=1"]], indirect=True)
def test_the_twin_of_a_lone_member_learns_from_half_and_answers_for_half(
    trained: tuple[Config, RunFolder, Pixels],
) -> None:
    config, folder, pixels = trained
    held_out = read_weights(folder.held_out(0))[0]
    assert len(held_out["position"]) == len(pixels.position_N) // 2
    assert held_out["logits"].isfinite().all()
    assert config.classifier.calibrate


@pytest.mark.parametrize("trained", [BLOCKS], indirect=True)
def test_a_block_is_held_out_whole(trained: tuple[Config, RunFolder, Pixels]) -> None:
    config, folder, pixels = trained
    _, fold = member_training._folds(config, folder, pixels)
    y, x = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    train = (y + x) % 2 == 1
    block = (y // 4 * 4 + x // 4)[train]
    assert all(len(set(fold[torch.from_numpy(block == b)].tolist())) == 1 for b in range(16))
    assert set(fold.tolist()) == {0, 1}


@pytest.mark.parametrize("trained", [BLOCKS], indirect=True)
def test_all_twins_say_the_temperature_and_those_without_blocks_the_sets(
    trained: tuple[Config, RunFolder, Pixels],
) -> None:
    config, folder, pixels = trained
    classify._calibrate(config, folder)
    stored = [read_weights(folder.held_out(member))[0] for member in range(2)]
    logits, position, kind = (torch.cat([part[n] for part in stored]) for n in ("logits", "position", "kind"))
    found = read_json(folder.calibration)
    assert found["temperature"] == fit_temperature(logits, position, margin=2.0)
    likely = (logits[kind == 1] / found["temperature"]).softmax(dim=1)
    pixel = torch.cat([part["pixel"] for part in stored])[kind == 1]
    assert torch.equal(position[kind == 1], pixels.position_N[pixel])
    expert = read_weights(folder.held_out("features"))[0]["logits"][1][pixel]
    assert found["sets"]["threshold"] == set_threshold(pool(likely, [expert]), position[kind == 1], 0.95)
    assert found["sets"]["threshold"] != set_threshold(likely, position[kind == 1], 0.95)
    assert found["held_out_pixels"] == (kind == 0).sum()


@pytest.mark.parametrize("trained", [MEMBERS], indirect=True)
def test_a_worker_that_begins_again_trains_what_is_missing(
    trained: tuple[Config, RunFolder, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder, pixels = trained
    folder.member(1).unlink()
    asked = []

    def train(*_: object, seed: int, member: int) -> None:
        asked.append((seed, member))
        raise InterruptedError

    monkeypatch.setattr(member_training, "_told", lambda settings: (config, folder, [0, 1]))
    monkeypatch.setattr(member_training, "_training_pixels", lambda *_: (pixels, SIZES))
    monkeypatch.setattr(member_training, "train_member", train)
    with pytest.raises(InterruptedError):
        member_training.train_members({})
    assert asked == [(config.seed, 1)]


@pytest.mark.parametrize("trained", [MEMBERS], indirect=True)
def test_a_lost_expert_is_fitted_again_to_the_same_bits(
    trained: tuple[Config, RunFolder, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder, pixels = trained
    content = folder.expert("features").read_bytes()
    assert is_trained(config, folder, "features")
    folder.expert("features").write_bytes(content[:-1])
    assert not is_trained(config, folder, "features")
    added: list[tuple[int, ...]] = []
    meter = SimpleNamespace(add=SimpleNamespace(remote=lambda *counts: added.append(counts)))
    monkeypatch.setattr(member_training, "_told", lambda settings: (config, folder, trainees(config)))
    monkeypatch.setattr(member_training, "_training_pixels", lambda *_: (pixels, SIZES))
    monkeypatch.setattr(member_training.ray.train, "report", lambda said: None)
    member_training.train_members({"meter": meter})
    assert folder.expert("features").read_bytes() == content
    assert [counts[:4] for counts in added] == [(1, 0, 0, len(content))]


@pytest.mark.parametrize(("fixed", "workers"), [(False, 16), (True, 1)])
def test_as_many_train_at_a_time_as_there_are_cpus_or_as_actors_are_set(
    fixed: bool, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer hold the training pixels in memory at once."""
    asked: list[int] = []
    monkeypatch.setattr(classify, "fit", lambda *_, workers, **__: asked.append(workers))
    monkeypatch.setattr(classify.ray, "cluster_resources", lambda: {"CPU": 16.0})
    shares = SimpleNamespace(num_gpus=0, fixed=fixed, actors=1)
    parts = list(range(20))
    classify._train(lambda _: None, load_config(None), RunFolder(tmp_path), shares, parts, None)
    assert asked == [workers]
