"""The benchmarks' yardstick computes the same features as the fast path; their floors are heeded."""

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import record
from benchmarks.learn import of_a_pixel
from benchmarks.processes import anonymous, cpu_below, holdings, kind, resident
from benchmarks.reference import plain_features
from benchmarks.scale import Case, missed_floors
from benchmarks.soak import COLUMNS, compared, grown_most
from benchmarks.windows import Bench, Pixels, splitting
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig
from pipeline.config import load_config


def test_plain_way_agrees_with_exact_mode() -> None:
    torch.manual_seed(0)
    unet = UNet(UNetConfig(channels=32), 3).eval()
    for parameter in unet.parameters():  # freshly made, many layers are zero and nothing would differ
        torch.nn.init.normal_(parameter, std=0.05)
    features = FeatureConfig(timesteps=(50, 600), stages=(0, 2, 5))
    schedule, patches = Schedule(DiffusionConfig()), torch.randn(3, 3, 16, 16)
    centre, pooled = plain_features(unet, schedule, features, patches)
    fast = Extractor(unet, schedule, features, PatchConfig(size=16, stride=1))(patches)
    for plain, quick in ((centre, fast.centre_NPTK[:, 0]), (pooled, fast.pooled_NTK)):
        assert torch.linalg.norm(plain - quick) / torch.linalg.norm(plain) < 1e-4


def test_splits_by_blocks_tell_where_pixels_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whole blocks are held out for their calibration, as in the pipeline."""
    split = splitting(load_config(None), "blocks", seed=3, block=16).split
    assert (split.protocol, split.seed, split.block, split.train_per_class) == ("blocks", 3, 16, 30)
    hidden = load_config(None, ["split.protocol=blocks", "split.inductive=true"])
    assert not splitting(hidden, "random", seed=0, block=16).split.inductive
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(Bench, "learn", lambda _, *given: asked.append(given))
    pixels, features = Pixels(*np.arange(8).reshape(4, 2)), (torch.zeros(2, 1, 1),) * 3
    bench = object.__new__(Bench)
    bench.learn_at(features, pixels)
    bench.learn_at(features, pixels, np.array([9, 9]))
    for (_, position, use, place), used in zip(asked, ([6, 7], [9, 9]), strict=True):
        assert [part.tolist() for part in (position, use, *place)] == [[4, 5], used, [0, 1], [2, 3]]


def test_what_a_pixel_of_the_map_costs() -> None:
    """Blocks of 24 that reach 4 further, on a tile of 144: seven along a side, the outer two half outside."""
    windows, answers = of_a_pixel(PatchConfig(size=48, stride=24, blend=4), tile=144)
    assert (windows, answers) == pytest.approx(((7 / 144) ** 2, ((5 * 32 + 2 * 16) / 144) ** 2))
    assert of_a_pixel(PatchConfig(size=48, stride=24, blend=0), tile=144) == pytest.approx(
        ((6 / 144) ** 2, 1)
    )


def test_floors_of_scale() -> None:
    good = {"workers": 64, "seconds": 2.0, "efficiency": 0.95, "driver_ms": 2.0}
    rows = [good | {"tiles": tiles, "driver_mib": mib} for tiles, mib in ((1000, 500), (100_000, 549))]
    assert missed_floors(rows) == []
    rows[1] |= {"driver_mib": 551, "efficiency": 0.89, "driver_ms": 5.1}
    assert [line.partition(": ")[2] for line in missed_floors(rows)] == [
        "efficiency 89.0%, floor 90%",
        "driver 5.10 ms a tile, floor 5",
        "driver 551 MiB, 500 with the fewest tiles",
    ]
    short = good | {"seconds": 0.5, "tiles": 10, "efficiency": 0.5, "driver_mib": 1}
    assert missed_floors([short]) == [], "too short to be scheduled on two cores"
    assert str(Case.parse("64x1000x0.5")) == "64x1000x0.5"


def test_cpu_time_of_processes_below() -> None:
    code = "import time; end = time.process_time() + 0.3\n"
    code += "while time.process_time() < end: pass\nprint(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert 0.2 < cpu_below()[child.pid] < 1.5
        assert kind(child.pid) == Path(sys.executable).name
    finally:
        child.kill()
        child.wait()
    assert child.pid not in cpu_below()
    assert kind(child.pid) == ""


def test_what_this_process_holds(tmp_path: Path) -> None:
    before, size = holdings(os.getpid()), 1 << 26
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block, (tmp_path / "open").open("w"):
        np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE] = 1
        after = holdings(os.getpid())
        resides = resident()
    assert after.memory - before.memory > size * 0.9
    assert size * 0.9 < resides - resident() < size * 1.1, "given back"
    assert after.files == before.files + 1
    assert after.threads >= threading.active_count()
    assert holdings(1 << 30) == (0, 0, 0), "ended"


@pytest.mark.parametrize(("flags", "counts"), [(mmap.MAP_PRIVATE, True), (mmap.MAP_SHARED, False)])
def test_anonymous_memory_is_not_that_which_processes_share(flags: int, counts: bool) -> None:
    before, size = anonymous(os.getpid()), 1 << 26
    with mmap.mmap(-1, size, flags | mmap.MAP_ANONYMOUS) as block:
        np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE] = 1
        grown = anonymous(os.getpid()) - before
    assert (grown > size * 0.9) == counts
    assert anonymous(1 << 30) == 0, "ended"


def test_growth_over_a_soak() -> None:
    held = [[100.0 + i] + [10.0] * (len(COLUMNS) - 2) + [float(i >= 4)] for i in range(6)]
    rows = compared(held)
    assert rows[0] == (COLUMNS[0], 100.5, 104.5, 104.5 / 100.5)
    assert {row[3] for row in rows[1:-1]} == {1.0}
    assert rows[-1][3] == float("inf"), "something where there was nothing"


def test_the_processes_that_grow_most() -> None:
    held = [{"raylet": 10.0, "driver": 5.0 + i} | ({"late": 3.0} if i == 2 else {}) for i in range(3)]
    assert grown_most(held, most=2).split("; ") == ["late 0 to 3", "driver 5 to 7"]


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_measured_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(record, "processor_has_bfloat16", lambda: has)
    assert record.arithmetics() == (("float32", "bfloat16") if has else ("float32",))
    assert record.arithmetics(emulated=True) == ("float32", "bfloat16")
