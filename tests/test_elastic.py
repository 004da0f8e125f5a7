"""Clusters that grow and shrink while a stage works."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks.sleeper import ROW_BYTES, SIDE, TinyReader
from pipeline.artifacts import read_json
from pipeline.cluster import ray_session, share_out
from pipeline.config import ClusterConfig
from pipeline.units import TileGrid, UnitSource, read_units
from tests.actors import Sleeper
from tests.conftest import ROOT
from tests.faults import Driver

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(1200)]
TILES = 40


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One node of one CPU; a command that is given now joins it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(("asked", "used"), [(None, 2), (1, 1)])
def test_a_node_joins_a_pool(asked: int | None, used: int, cluster: Cluster) -> None:
    """It is used, unless the number of actors was asked for."""
    source = UnitSource("tiles", range(TILES), TinyReader(TileGrid(SIDE, TILES * SIDE, SIDE)), ROW_BYTES)
    with ray_session(quiet=True):
        shares = share_out(ClusterConfig(actors=asked))
        assert shares.actors == 1
        dataset = shares.through_actors(read_units(source, tasks=4), TILES, Sleeper, (1.0,))
        rows = iter(dataset.iter_rows())
        found = [next(rows)]
        cluster.add_node(num_cpus=1)
        found += rows
    assert sorted(row["unit"] for row in found) == list(range(TILES))
    assert len({row["node"] for row in found}) == used


def test_pretraining_goes_on_with_the_workers_that_remain(
    cluster: Cluster, tiny_scene: Path, tmp_path: Path
) -> None:
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    steps, every = 60, 10
    driver = Driver(
        tiny_scene, tmp_path / "run", "--until", "pretrain", "--set", f"pretrain.steps={steps}",
        "--set", f"pretrain.checkpoint_every={every}", "--set", "pretrain.batch=6",
        "--set", "cluster.train_workers=3", "--set", "cluster.min_train_workers=1",
    )  # fmt: skip
    folder = tmp_path / "run" / "pretrain"
    while not list(folder.glob("step-*.pt")):
        assert driver.process.poll() is None, driver.said
        time.sleep(0.05)
    for node in others:
        cluster.remove_node(node, allow_graceful=False)
    assert not (folder / "history.json").exists(), "the training was over before nodes were removed"
    assert driver.wait() == 0, driver.said
    assert read_json(folder / "history.json")[-1]["step"] == steps
