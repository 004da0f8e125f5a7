"""The budget of a run: counts worked out by hand, and refusals."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtmsd.split import TRAIN
from pipeline import budget, timing
from pipeline import machine as machine_module
from pipeline.artifacts import RunFolder
from pipeline.budget import Cost, check_fits, costs, processes, table, unet_bytes
from pipeline.config import ClusterConfig, Config, load_config
from pipeline.errors import UserError
from pipeline.labels import labelled_split
from pipeline.machine import Machine, shown
from pipeline.plan import Plan, make_plan
from pipeline.run import cli
from pipeline.scene import open_scene, write_scene
from tests.conftest import TINY

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, RunFolder, str]:
    """100 x 90 pixels, 10 bands; two classes of 8 x 8 pixels, each on four blocks of 4 x 4."""
    labels = np.zeros((100, 90), np.uint8)
    labels[0:8, 0:8], labels[40:48, 40:48] = 1, 2
    cube = np.random.default_rng(0).random((10, 100, 90), np.float32)
    write_scene(tmp_path / "s.zarr", cube, labels=labels, chunk=64)
    config = load_config(TINY, ["split.train_fraction=0.5", "patches.stride=4"])
    return config, RunFolder(tmp_path / "out"), str(tmp_path / "s.zarr")


def _planned(small: tuple[Config, RunFolder, str]) -> dict[str, Cost]:
    config, folder, url = small
    scene = open_scene(url)
    plan = make_plan(config, folder, scene, None, None, None)
    return {cost.stage: cost for cost in costs(config, folder, scene, plan)}


def test_counts_by_hand(small: tuple[Config, RunFolder, str]) -> None:
    planned = _planned(small)
    reduce = planned["reduce"]  # 2 x 2 tiles of 64 pixels, read twice as float32
    assert (reduce.units, reduce.bytes_read) == (4, 2 * 4 * 10 * 64 * 64 * 4)
    assert reduce.bytes_written == 4 * 100 * 90 * 4
    pretrain = planned["pretrain"]  # 6 steps of 4 patches, 4 components of 16 x 16
    assert (pretrain.units, pretrain.unet_passes, pretrain.bytes_read) == (6, 24, 24 * 4 * 16 * 16 * 4)
    extract = planned["extract"]  # 8 blocks, each with training pixels: two passes over all
    assert extract.units == 1
    assert extract.windows == 8 + 8
    assert extract.unet_passes == 2 * extract.windows
    # Two timesteps, centre and pooled; of four components means over four boxes, openings and closings by
    # three; float32.
    kept = 2 * 2 * small[0].kept_channels(2) * 4 + (4 * 4 + 2 * 3 * 4) * 4
    assert extract.bytes_written == 128 * (kept + 4 * 8)
    assert (planned["classify"].units, planned["classify"].bytes_read) == (2, 128 * kept)
    assert planned["classify"].member_steps == 2 * 2 * 5 * 1  # members and twins, epochs, 64 pixels
    tiles = planned["map"]  # 2 x 2 tiles of 64 pixels, 25 x 23 blocks of 4 in all, and a halo of 12 pixels
    assert (tiles.units, tiles.windows, tiles.unet_passes) == (4, 25 * 23, 2 * 25 * 23)
    assert tiles.bytes_read == 4 * 4 * 76 * 76 * 4
    assert tiles.bytes_written == 100 * 90 * (9 * 4 / 3 + 2 * 5)


def test_splits_by_blocks_train_a_second_twin(small: tuple[Config, RunFolder, str]) -> None:
    settings = ["split.protocol=blocks", "split.block=4", "split.untested=keep"]
    config = load_config(None, settings, small[0])
    train = int((labelled_split(config, open_scene(small[2]))[3] == TRAIN).sum())
    planned = _planned((config, *small[1:]))
    assert planned["classify"].member_steps == 2 * 3 * 5 * max(1, train // config.classifier.batch)


def test_what_is_done_is_taken_off(small: tuple[Config, RunFolder, str]) -> None:
    config, folder, url = small
    scene = open_scene(url)
    markers = folder.markers("map")
    markers.mkdir(parents=True)
    for tile in range(3):
        (markers / str(tile)).touch()
    folder.pretrain.mkdir()
    (folder.pretrain / "step-00000003.pt").touch()
    stages = ("pretrain", "map")
    plan = Plan("", {}, (), stages, (), None)
    pretrain, tiles = costs(config, folder, scene, plan)
    assert (pretrain.done, pretrain.left(pretrain.unet_passes)) == (3, 12)
    assert (tiles.done, tiles.left(tiles.windows)) == (3, 144)  # a quarter of 575
    plan = Plan("", {}, (), stages, stages, None)  # asked to make them again
    assert [cost.done for cost in costs(config, folder, scene, plan)] == [0, 0]


def test_unet_bytes_are_those_of_the_real_network() -> None:
    import torch

    from mtmsd.unet import UNet

    config = load_config(TINY)
    unet = UNet(config.unet, 4)
    weights, maps = unet_bytes(config, 16)
    assert weights == sum(p.numel() for p in unet.parameters()) * 4
    first = 32 * 16 * 16 * 4  # the first convolution's output alone
    assert first * 10 < maps < first * 1000
    assert unet_bytes(config, 32)[1] == pytest.approx(4 * maps, rel=0.1)
    assert not any(p.is_meta for p in unet.parameters())
    assert torch.empty(1).device.type == "cpu", "the device meta is left again"


def test_bytes_of_a_network_with_three_decoders() -> None:
    from mtmsd.unets import make_unet

    single, three = load_config(TINY), load_config(TINY, ["unet.kind=multistage"])
    wide = load_config(
        TINY, ["unet.kind=multistage", "unet.decoders=[[1,2],[1,2],[2,2]]", "features.stages=[1]"]
    )
    unet = make_unet(load_config(TINY, ["unet.kind=multistage", "unet.cuts=[9,99]"]).unet, 4)
    weights, maps = unet_bytes(three, 16)
    assert weights == sum(p.numel() for p in unet.parameters()) * 4
    assert 2 * unet_bytes(single, 16)[0] < weights < 3 * unet_bytes(single, 16)[0]
    assert maps == unet_bytes(single, 16)[1], "a step of training holds one decoder's maps"
    assert unet_bytes(wide, 16)[1] > maps


def test_memory_that_cannot_fit_is_refused() -> None:
    config = load_config(None, ["cluster.actors=4"])
    cost = Cost("map", "tiles", units=10, done=0, actor_bytes=2 * GIB)
    check_fits(config, [cost], Machine(cpus=4, node_bytes=10 * GIB, nodes=1, free_bytes=0))
    # Four actors, the command and a reading process with libraries of 600 MiB each, 256 MiB of kept chunks.
    with pytest.raises(UserError, match=r"stage map: 4 processes of 2.0 GiB.* need 9.4 GiB .* has 8.0 GiB"):
        check_fits(config, [cost], Machine(cpus=4, node_bytes=8 * GIB, nodes=1, free_bytes=0))
    check_fits(config, [cost], Machine(cpus=8, node_bytes=8 * GIB, nodes=2, free_bytes=0))
    few = Cost("map", "tiles", units=2, done=0, actor_bytes=2 * GIB)  # no more actors than tiles
    check_fits(config, [few], Machine(cpus=4, node_bytes=8 * GIB, nodes=1, free_bytes=0))


def test_a_disk_that_is_too_small_is_refused() -> None:
    planned = [
        Cost("reduce", "tiles", 4, 2, bytes_written=10 * MIB),
        Cost("map", "tiles", 4, 0, bytes_written=MIB),
    ]
    machine = Machine(cpus=2, node_bytes=64 * GIB, nodes=1, free_bytes=6 * MIB)
    check_fits(Config(), planned, machine)
    with pytest.raises(UserError, match=r"up to 6.0 MiB of disk, 6.0 MiB are free"):
        check_fits(Config(), planned, Machine(2, 64 * GIB, 1, 6 * MIB - 1))


def test_dry_run_says_it_and_refuses(
    small: tuple[Config, RunFolder, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    _, folder, url = small
    arguments = [url, "--config", str(TINY), "--out", str(folder.path), "--dry-run"]
    assert cli(arguments) == 0
    output = capsys.readouterr().out
    assert "1,150" in output, "U-Net passes of the map"
    assert f"{os.cpu_count()} CPUs in all" in output
    assert re.search(r"^map .* about [\d.]+ s$", output, re.MULTILINE), "an estimate of a real calibration"
    assert re.search(r"^time: about [\d.]+ s in all; an estimate", output, re.MULTILINE)
    monkeypatch.setattr(machine_module, "machine_at_hand", lambda folder: Machine(2, 64 * GIB, 1, MIB))
    monkeypatch.setattr(timing, "estimates", None)  # what cannot fit is not tried
    assert cli(arguments) == 2
    output = capsys.readouterr()
    assert "U-Net passes" in output.out, "the budget is shown all the same"
    assert output.err.strip().splitlines()[-1].startswith("error: the run needs up to")
    assert not folder.path.exists()


def test_experts_need_processes_and_memory(
    small: tuple[Config, RunFolder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder, url = small
    with_experts = config.model_copy(
        update={"classifier": replace(config.classifier, experts=("features", "spectra"))}
    )
    without = config.model_copy(update={"classifier": replace(config.classifier, experts=())})
    many, few = (_planned((c, folder, url))["classify"] for c in (with_experts, without))
    train = int((labelled_split(config, open_scene(url))[3] == TRAIN).sum())
    features = 2 * 2 * config.kept_channels(2) * 4 + (4 * 4 + 2 * 3 * 4) * 4
    assert 6 * features > 8 * train * 8
    assert many.actor_bytes - few.actor_bytes == 6 * train * features, "copies in double precision"
    monkeypatch.setattr(budget, "_COPIES", 0)
    fewer = _planned((with_experts, folder, url))["classify"]
    assert fewer.actor_bytes - few.actor_bytes == 8 * train**2 * 8, "eight matrices in double precision"
    machine = Machine(cpus=16, node_bytes=8 * GIB, nodes=1, free_bytes=None)
    assert [processes(c, cost, machine) for c, cost in ((with_experts, many), (without, few))] == [4, 2]
    one = with_experts.model_copy(update={"cluster": ClusterConfig(actors=1, gpu=None)})
    assert processes(one, many, machine) == 1, "as many members at a time as actors, where that is set"
    free = with_experts.model_copy(update={"cluster": ClusterConfig(gpu=None)})
    assert processes(free, many, replace(machine, gpus=3)) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (64, 8 * GIB)),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, (64, 8 * GIB)),
        ({"cpu.max": "250000 100000\n", "memory.max": f"{GIB}\n"}, (2, GIB)),
        ({"cpu.max": "50000 100000\n"}, (1, 8 * GIB)),
    ],
)  # fmt: skip
def test_a_container_has_its_share(
    files: dict[str, str], expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 8 << 18, "SC_PAGE_SIZE": 4096}.get)
    assert machine_module._own_share(tmp_path) == expected


def test_bytes_for_people() -> None:
    assert [shown(n) for n in (0, 1023, 1536, 5 * GIB, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
    assert "1 / 4 tiles" in table([Cost("map", "tiles", 4, 1)], {})


def test_spectra_alone_cost_no_unet(small: tuple[Config, RunFolder, str]) -> None:
    _, folder, url = small
    alone = ["classifier.kind=ssftt", "classifier.patch=7", "features.spectra=[]"]
    config = load_config(TINY, ["split.train_fraction=0.5", *alone])
    planned = _planned((config, folder, url))
    assert planned["pretrain"].units == 0
    assert [planned[stage].unet_passes for stage in ("pretrain", "extract", "map")] == [0, 0, 0]
    assert planned["extract"].windows == 8  # one pass: there are no channels to choose
    assert planned["extract"].bytes_written == 128 * (4 * 49 * 4 + 4 * 8)  # 7 x 7 patches of 4 components
    assert planned["map"].windows == 25 * 23


def test_dropped_timesteps_are_off_the_map(small: tuple[Config, RunFolder, str]) -> None:
    config, folder, url = small
    kept = load_config(None, ["fusion.kind=hyperfeatures", "fusion.keep_timesteps=1"], config)
    planned = _planned((kept, folder, url))
    assert planned["extract"].unet_passes == 2 * 16
    assert planned["map"].unet_passes == 25 * 23
