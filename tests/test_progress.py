"""Progress: sums of what tasks report, and a bar whose rate and time left are right."""

import ctypes
import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.exceptions
import ray.util.metrics
import tqdm.std

from pipeline import progress, telemetry
from pipeline.progress import Meter, ProgressBar, peak_rss
from pipeline.telemetry import COUNTERS, GAUGES, StageMetrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that stands still until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(tqdm.std, "time", lambda: self.now)
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    monkeypatch.setattr(tqdm.std.tqdm, "monitor_interval", 0)
    before = {thread.name for thread in threading.enumerate()}
    yield Clock(monkeypatch)
    started = {thread.name for thread in threading.enumerate()} - before
    assert "tqdm_monitor" not in started


def counts(units: int, **others: float) -> dict[str, float]:
    return {"units": units, "skipped": 0, "pixels": 0, **others}


def last(text: str) -> str:
    return re.split(r"[\r\n]", text.strip())[-1]


def test_meter_adds_up() -> None:
    meter = Meter()
    meter.add(1, 10, 100, 1000, 7)
    meter.add(2, 20, 200, 2000, 3, 64)
    meter.skip(5)
    meter.observe(loss=2.0)
    meter.observe(loss=1.5, train_accuracy=0.9)
    assert meter.read() == {
        "units": 3, "pixels": 30, "bytes_read": 300, "bytes_written": 3000, "unet_passes": 64,
        "skipped": 5, "peak_rss_bytes": 7, "loss": 1.5, "train_accuracy": 0.9,
    }  # fmt: skip


def test_work_that_is_lost_counts_no_longer(clock: Clock) -> None:
    """700 steps done, the last checkpoint at 500: after it 600 more are 1,100 of 2,000."""
    meter, stream = Meter(), Terminal()
    bar = ProgressBar("pretrain", 2000, "steps", stream)
    for begun, steps in ((0, 700), (500, 600)):
        meter.begin_at(begun)
        for _ in range(steps):
            clock.now += 1
            meter.add(1, 0, 0, 0, 0)
            bar.show(meter.read())
    counts = meter.read()
    assert counts["units"] + counts["skipped"] == 1100
    bar.close()
    assert "1100/2000" in last(stream.getvalue())
    again = Meter()
    again.begin_at(40)
    assert again.read()["skipped"] == 40


def test_slow_units_leave_the_right_time(clock: Clock) -> None:
    """A unit takes 60 s, the meter is read every half second: 8 units left are 8 minutes."""
    stream = Terminal()
    bar = ProgressBar("map", 10, "tiles", stream)
    for half_second in range(1, 241):
        clock.now += 0.5
        bar.show(counts(half_second // 120, pixels=9216 * (half_second // 120)))
    bar.close()
    line = last(stream.getvalue())
    assert "2/10" in line
    assert "[02:00<08:00" in line
    assert "60.00s/ tiles" in line
    assert "154 pixels/s" in line  # 2 x 9216 / 120 = 153.6
    assert bar.seconds_left() == pytest.approx(480)


def test_what_an_interrupted_run_did_is_not_part_of_the_rate(clock: Clock) -> None:
    stream = Terminal()
    bar = ProgressBar("map", 100, "tiles", stream)
    bar.show(counts(0, skipped=80))
    assert bar.seconds_left() is None
    clock.now += 50
    bar.show(counts(10, skipped=80))
    bar.close()
    assert "90/100" in last(stream.getvalue())
    assert "[00:50<00:50" in last(stream.getvalue())  # 10 units in 50 s, 10 to go


def test_more_units_than_expected_do_not_overshoot(clock: Clock) -> None:
    bar = ProgressBar("pretrain", 4, "steps", Terminal())
    bar.show(counts(3, skipped=3))
    assert bar.bar.n == 4
    bar.close()


def test_a_log_gets_lines_ten_seconds_apart(clock: Clock) -> None:
    stream = io.StringIO()
    bar = ProgressBar("pretrain", 100, "steps", stream)
    for step in range(1, 61):
        clock.now += 0.5
        bar.show(counts(step, loss=1 / step))
    bar.close()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [int(re.search(r"(\d+)/100", line)[1]) for line in lines] == [0, 20, 40, 60]
    assert "loss 0.025" in lines[2]
    assert re.search(r"\[00:20<00:30, +2\.00 steps/s", lines[2])


class Recorder:
    """Stands for one of Ray's metrics."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
        self.name, self.values, self.keys = name, [], tag_keys
        assert description

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.keys)
        self.tags = tags

    def inc(self, value: float) -> None:
        self.values.append(value)

    set = inc


def test_metrics_grow_by_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "Counter", Recorder)
    monkeypatch.setattr(telemetry, "Gauge", Recorder)
    metrics = StageMetrics("map", "tiles")
    nothing = dict.fromkeys(COUNTERS, 0)
    metrics.update({**nothing, "units_left": 4}, 0)
    metrics.update({**nothing, "units": 1, "pixels": 100, "units_left": 3}, 10)
    metrics.update({**nothing, "units": 3, "pixels": 300, "units_left": 1, "loss": 0.5}, 20)
    made = metrics._counters | metrics._gauges
    assert made["units"].name == "mtmsd_units"
    assert made["units"].tags == {"stage": "map", "unit": "tiles"}
    assert made["units"].values == [1, 2]
    assert made["pixels"].values == [100, 200]
    assert made["bytes_read"].values == []
    assert made["units_left"].values == [4, 3, 1]
    assert made["pixels_per_second"].values == [0, 10, 15]
    assert made["loss"].values == [0.5]
    assert made["train_accuracy"].values == []


@pytest.mark.parametrize("name", [*COUNTERS, *GAUGES])
def test_ray_takes_the_names(name: str) -> None:
    assert not ray.util.metrics._is_invalid_metric_name(telemetry.PREFIX + name)


def lose_the_meter() -> None:
    with progress.metered("map", 4, "tiles") as (meter, _):
        ray.kill(meter)
        time.sleep(3 * progress._POLL_S)


@pytest.mark.cluster
def test_a_lost_meter_ends_the_stage_without_noise(
    ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ray.exceptions.RayActorError):
        lose_the_meter()
    assert "Traceback" not in capfd.readouterr().err


def _resident() -> int:
    (pages,) = re.findall(r"^VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(pages) * 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system() -> None:
    progress.give_back_memory()
    before = _resident()
    small = [bytes(100_000) for _ in range(3000)]
    last = small[-1]  # it lies above the others: nothing is given back by itself
    del small
    progress.give_back_memory()
    assert _resident() - before < 50e6
    assert len(last) == 100_000


@pytest.mark.cluster
def test_a_stage_gives_memory_back_while_it_runs(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(progress, "give_back_memory", lambda: given.append(time.monotonic()))
    monkeypatch.setattr(progress, "_POLL_S", 0.05)
    monkeypatch.setattr(progress, "_TRIM_EVERY", 2)
    with progress.metered("map", 4, "tiles"):
        until = time.monotonic() + 30
        while not given and time.monotonic() < until:
            time.sleep(0.05)
    assert given


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_not_that_of_the_process_which_started_it() -> None:
    ballast = np.ones(600 << 17)  # 600 MiB, written to
    code = "from pipeline.progress import peak_rss; print(peak_rss())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 << 20 < int(child.stdout) < ballast.nbytes < peak_rss()
