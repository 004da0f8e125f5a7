"""Estimated times: a clock that is set by hand, and one real calibration of a tiny network."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import timing
from pipeline.budget import Cost
from pipeline.config import load_config
from pipeline.machine import Machine
from pipeline.scene import Scene, open_scene, write_scene
from pipeline.timing import estimates, piece_seconds, said, spoken, timed
from tests.conftest import TINY

CPU = torch.device("cpu")


def ticking(step: float) -> Callable[[], float]:
    """A clock that goes on by ``step`` seconds whenever it is read."""
    readings = itertools.count()
    return lambda: step * next(readings)


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    path = tmp_path_factory.mktemp("scene") / "s.zarr"
    cube = np.random.default_rng(0).random((10, 100, 90), np.float32)
    cube[3] = np.nan  # a band without data
    labels = np.zeros((100, 90), np.uint8)
    labels[:8, :8], labels[8:16, :8] = 1, 2
    write_scene(path, cube, labels=labels, chunk=64)
    return open_scene(str(path))


@pytest.mark.parametrize(
    ("seconds", "counts", "calls"),
    [
        ([9, 0.6, 0.5, 0.7, 0.3], 0.3, 5),  # two seconds of repetition
        ([9, 0.1, 0.3, 0.2, 0.2, 0.1], 0.1, 6),  # five repetitions
        ([9, 7], 7, 2),
        ([11], 11, 1),
    ],
)
def test_the_shortest_call_after_the_first_counts_unless_that_is_long(
    seconds: list[float], counts: float, calls: int
) -> None:
    told, now = [], [0.0]

    def work() -> None:
        now[0] += seconds[len(told)]
        told.append(now[0])

    assert timed(work, CPU, lambda: now[0]) == pytest.approx(counts)
    assert len(told) == calls


def test_estimates_by_hand(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = ["pretrain.batch=16", "features.batch=4", "cluster.train_workers=2"]
    config = load_config(TINY, settings)
    planned = [
        Cost("reduce", "tiles", units=4, done=0),
        Cost("pretrain", "steps", units=100, done=40),
        Cost("extract", "groups", units=3, done=0, unet_passes=80),
        Cost("classify", "members", units=2, done=1, member_steps=400),
        Cost("map", "tiles", units=10, done=5, unet_passes=1000),
        Cost("report", "page", units=1, done=0),
    ]
    machine = Machine(cpus=4, node_bytes=1 << 40, nodes=2, free_bytes=1 << 40)
    # Whatever is timed takes half a second by this clock.
    assert estimates(config, scene, planned, machine, ticking(0.5)) == pytest.approx({
        "reduce": 8 * 0.5 / 4,  # every tile twice, on four CPUs
        "pretrain": 60 * 0.5,  # two patches took as long as four, so eight do; both workers share a step
        "extract": 80 * 0.5 / 4 / 3,  # four windows were timed; three groups, so three actors
        "classify": 200 * 0.5 / 5 / 2,  # five steps were timed
        "map": 500 * 0.5 / 4 / 4,
    })  # fmt: skip


def test_a_step_has_costs_that_do_not_grow_with_its_patches(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.3 s, and 0.2 s for each of 16 patches, told from steps of two and of four."""
    now = [0.0]

    def step(*_: object, share: slice, **__: object) -> None:
        now[0] += 0.3 + 0.2 * (share.stop - share.start)

    monkeypatch.setattr(timing, "pretrain_step", step)
    config = load_config(TINY, ["pretrain.batch=16", "cluster.train_workers=1"])
    found = piece_seconds(config, scene, ["pretrain"], gpu=False, train_threads=1, clock=lambda: now[0])
    assert found == pytest.approx({"pretrain": 0.3 + 0.2 * 16})


def test_what_is_done_is_not_timed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = Machine(cpus=2, node_bytes=1 << 40, nodes=1, free_bytes=1 << 40)
    done = [Cost("pretrain", "steps", 6, 6), Cost("report", "page", 1, 0)]
    assert estimates(load_config(TINY), scene, done, machine) == {}
    assert said({}).startswith("time: not estimated")


@pytest.mark.cluster
def test_in_a_cluster_one_of_its_nodes_is_timed(ray_cluster: None, scene: Scene) -> None:
    planned = [Cost("reduce", "tiles", 4, 0), Cost("map", "tiles", 10, 5, unet_passes=1000)]
    machine = Machine(cpus=2, node_bytes=1 << 40, nodes=1, free_bytes=1 << 40)

    def unread() -> float:
        raise AssertionError("timed in the command's own process")

    found = estimates(load_config(TINY), scene, planned, machine, unread)
    assert list(found) == ["reduce", "map"]
    assert all(seconds > 0 for seconds in found.values())


def test_real_pieces_of_a_larger_network_take_longer(scene: Scene) -> None:
    stages, threads = ("reduce", "pretrain", "extract", "classify", "map", "report"), torch.get_num_threads()
    networks = ("pretrain", "extract")
    small, large = (
        piece_seconds(load_config(TINY, [f"unet.channels={n}"]), scene, some, gpu=False, train_threads=1)
        for n, some in ((32, stages), (128, networks))
    )
    assert list(small) == list(stages[:-1])
    assert all(0 < seconds < 5 for seconds in small.values())
    for stage in networks:
        assert large[stage] > 2 * small[stage]  # some 16 times the products
    assert torch.get_num_threads() == threads


def test_a_tile_without_data_is_timed_like_others(tmp_path: Path) -> None:
    cube = np.full((4, 192, 192), np.nan, np.float32)
    cube[:, :20, :20] = 1.0  # the tile in the middle has none
    write_scene(tmp_path / "s.zarr", cube, chunk=64)
    opened = open_scene(str(tmp_path / "s.zarr"))
    seconds = piece_seconds(load_config(TINY), opened, ["reduce"], gpu=False, train_threads=1)
    assert seconds["reduce"] > 0


def test_durations_for_people() -> None:
    assert [spoken(seconds) for seconds in (0.2, 41, 100, 2400, 9000, 5e6)] == [
        "about 1 s", "about 41 s", "about 1.7 min", "about 40 min", "about 2.5 h", "about 1,389 h",
    ]  # fmt: skip
