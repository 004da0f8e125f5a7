"""Faults, caused: whatever happens to a run, the same command then gives the undisturbed run's map.

The short choice runs with the other tests; all of them with ``make faults``.
"""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.artifacts import STAGES, RunFolder, read_json
from tests.conftest import ROOT
from tests.faults import Driver, assert_same, begun, finish, marked

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(3600)]
TILES = 6
PATCH = ["classifier.patch=7", "features.spectra=[]"]
OTHERS = {
    "hyperfeatures": ["fusion.kind=hyperfeatures", "fusion.width=8", "fusion.keep_timesteps=1"],
    "ssftt": ["classifier.kind=ssftt", *PATCH],
    "diffusion_ssftt": ["classifier.kind=diffusion_ssftt", *PATCH],
    "multistage": ["unet.kind=multistage", "unet.cuts=[300, 600]"],
    "supertokens": ["map.regions=supertokens"],
    "token classifier": ["map.regions=supertokens", "supertokens.steps=50"],
}


@pytest.fixture(scope="module")
def undisturbed(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(tiny_scene, folder)
    return folder


@pytest.fixture
def until_map(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it in which the map is still to be made."""
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    for stage in ("report", "map"):
        RunFolder(out).forget(stage)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_every_stage(seed: int, undisturbed: Path, tiny_scene: Path, tmp_path: Path) -> None:
    """Six kills each, one in every stage at a random moment: 24 with all seeds."""
    moments, out, killed = random.Random(seed), tmp_path / "run", []
    seconds = {stage: record["wall_s"] for stage, record in read_json(undisturbed / "stages.json").items()}
    for stage in STAGES:
        driver = begun(tiny_scene, out)
        if driver.wait_for(f"^{stage} " if stage != "report" else "^map .*100%"):
            try:
                driver.process.wait(moments.uniform(0, seconds[stage]))
            except subprocess.TimeoutExpired:
                driver.process.kill()
        driver.wait()
        killed.append(driver)
        before = marked(out)
        assert not driver.nothing_left(within_s=120, agents=False)
        late = {unit: written for unit, written in marked(out).items() if unit not in before}
        before |= late  # orphans may have finished a unit in their last second
    finish(tiny_scene, out)
    after = marked(out)
    assert {unit: after[unit] for unit in before} == before, "finished units are not made again"
    assert_same(out, undisturbed)
    assert not any(driver.nothing_left(within_s=120) for driver in killed), "Ray must die by itself"


@pytest.mark.parametrize("part", OTHERS)
def test_other_parts_are_killed(part: str, tiny_scene: Path, tmp_path: Path) -> None:
    """In the stages that they change; undisturbed by one actor, disturbed by two."""
    settings = [word for setting in OTHERS[part] for word in ("--set", setting)]
    alone, out = tmp_path / "alone", tmp_path / "run"
    finish(tiny_scene, alone, *settings, "--set", "cluster.actors=1")
    stages = read_json(alone / "stages.json")
    for stage in ("pretrain", "classify", "map"):
        driver = begun(tiny_scene, out, *settings)
        assert driver.wait_for(f"^{stage} "), driver.said
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.process.wait(stages[stage]["wall_s"] / 2)
        driver.process.kill()
        driver.wait()
        assert not driver.nothing_left(within_s=120, agents=False)
    finish(tiny_scene, out, *settings)
    assert_same(out, alone)


def test_work_done_twice(undisturbed: Path, until_map: Path, tiny_scene: Path) -> None:
    """Two kills during the map cost at most a computed and a begun tile per actor each."""
    script, log = ROOT / "tests" / "counting_run.py", until_map.with_suffix(".computed")
    for kills in range(2):
        driver = begun(tiny_scene, until_map, script=script)
        while not log.exists() or len(log.read_text().splitlines()) < 2 * (kills + 1):
            assert driver.process.poll() is None, driver.said
            time.sleep(0.02)
        driver.process.kill()
        driver.wait()
        assert not driver.nothing_left(within_s=120, agents=False)
    driver = begun(tiny_scene, until_map, script=script)
    assert driver.wait() == 0, driver.said
    computed = [line.split()[0] for line in log.read_text().splitlines()]
    assert set(computed) == {str(tile) for tile in range(TILES)}
    assert len(computed) - TILES <= 2 * 2, computed
    assert_same(until_map, undisturbed)


@pytest.mark.parametrize("title", ["ray::MapWorker(MapBatches(MapActor))", "ray::Write"])
def test_a_worker_is_killed_during_the_map(
    title: str, undisturbed: Path, until_map: Path, tiny_scene: Path
) -> None:
    driver = begun(tiny_scene, until_map)
    assert driver.wait_for("^map "), driver.said
    killed = 0
    while killed < 2 and driver.process.poll() is None:
        killed += driver.kill_one(title)
        time.sleep(0.02)  # a write is short
    assert killed, "no such process was seen"
    assert driver.wait() == 0, driver.said
    assert_same(until_map, undisturbed)


def test_a_training_worker_is_killed(undisturbed: Path, tiny_scene: Path, tmp_path: Path) -> None:
    driver = begun(tiny_scene, tmp_path / "run")
    while driver.process.poll() is None and not list((tmp_path / "run" / "pretrain").glob("step-*.pt")):
        time.sleep(0.02)
    assert driver.kill_one("ray::RayTrainWorker"), driver.said
    assert driver.wait() == 0, driver.said
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["pretrain", "extract", "map"])
def test_asked_to_end(
    stage: str, number: signal.Signals, undisturbed: Path, tiny_scene: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    driver = begun(tiny_scene, out, "--from", stage)
    assert driver.wait_for(f"^{stage} "), driver.said
    driver.process.send_signal(number)
    assert driver.process.wait(60) == 1, driver.said
    assert driver.said.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in driver.said
    assert not (out / ".lock").exists()
    assert not driver.nothing_left(within_s=20), "Ray must not be left behind"
    finish(tiny_scene, out)
    assert_same(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", disk], check=False)
    if made.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_the_disk_is_full(small_disk: Path, undisturbed: Path, tiny_scene: Path) -> None:
    out = small_disk / "run"
    driver = Driver(tiny_scene, out)
    assert driver.wait() == 2, driver.said
    last = driver.said.splitlines()[-1]
    assert last.startswith("error: No space left on device"), last
    assert "the same command goes on" in last
    subprocess.run(["mount", "-o", "remount,size=200M", small_disk], check=True)
    finish(tiny_scene, out)
    assert_same(out, undisturbed)


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """A cluster that the next command joins: what removes each node but the head's."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield [partial(cluster.remove_node, node, allow_graceful=False) for node in others]
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_node_is_removed(
    stage: str,
    seed: int,
    undisturbed: Path,
    tiny_scene: Path,
    tmp_path: Path,
    three_nodes: list[Callable[[], None]],
) -> None:
    """At a random moment of each stage: ten removals with all seeds."""
    draw, out = random.Random(f"{stage} {seed}"), Path(shutil.copytree(undisturbed, tmp_path / "run"))
    seconds = read_json(undisturbed / "stages.json")[stage]["wall_s"]
    driver = begun(tiny_scene, out, "--from", stage, "--set", "cluster.actors=2")
    assert driver.wait_for(f"^{stage} "), driver.said
    time.sleep(draw.uniform(0, 0.8 * seconds))
    assert driver.process.poll() is None, driver.said
    draw.choice(three_nodes)()
    assert driver.wait() == 0, driver.said
    assert_same(out, undisturbed)


@pytest.mark.parametrize("stage", ["pretrain", "map"])
def test_the_head_is_lost(
    stage: str, undisturbed: Path, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node with all of Ray's own processes; the job is submitted again to another cluster."""
    from ray.cluster_utils import Cluster

    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = tiny_scene, out, "--from", stage, "--set", "cluster.actors=1"
    for again in (False, True):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        try:
            driver = begun(*arguments)
            if not again:
                assert driver.wait_for(f"^{stage} .* [1-9]"), driver.said
                cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            assert (driver.wait() == 0) == again, driver.said
        finally:
            cluster.shutdown()
    assert_same(out, undisturbed)
