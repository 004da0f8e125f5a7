"""What a stage has done so far: counted from anywhere in the cluster, shown, and exported.

The meter is an actor that tasks report to; the process that drives the stage reads it twice a second,
draws the progress (done, rate, time left) and hands the counts to Prometheus.
"""

import ctypes
import itertools
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import ray
from ray.actor import ActorHandle
from tqdm import tqdm

from pipeline.telemetry import StageMetrics

_POLL_S = 0.5
_LOG_EVERY_S = 10.0
_TRIM_EVERY = 20  # looks
_COUNTED = ("units", "pixels", "bytes_read", "bytes_written", "unet_passes")


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes.

    On Linux ``getrusage`` would count what the process that started this one had held, so the kernel's own
    mark is read where it keeps one (some sandboxes do not).
    """
    status = Path("/proc/self/status")
    if status.exists() and (mark := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(mark[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_memory() -> None:
    """Return what this process has freed to the system, where the C library can (glibc).

    It keeps much of what Ray's many small, short-lived records have taken (``docs/log.md``).
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class Meter:
    """Sums of what a stage's tasks report; an actor where a stage runs."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys((*_COUNTED, "skipped", "peak_rss_bytes"), 0)
        self._latest: dict[str, float] = {}

    def add(self, units: int, pixels: int, read: int, written: int, rss: int, unet_passes: int = 0) -> None:
        """Add finished work; the memory (bytes) is a maximum."""
        for name, value in zip(_COUNTED, (units, pixels, read, written, unet_passes), strict=True):
            self._sums[name] += value
        self._sums["peak_rss_bytes"] = max(self._sums["peak_rss_bytes"], rss)

    def skip(self, units: int) -> None:
        """Count units that an interrupted run has finished: done, but no part of the rate."""
        self._sums["skipped"] += units

    def begin_at(self, done: int) -> None:
        """Go on where so many units are done: after a loss fewer than have been counted."""
        self._sums["skipped"] = done - self._sums["units"]

    def observe(self, **values: float) -> None:
        """Note the latest value of what is watched, e.g. ``loss``."""
        self._latest |= values

    def read(self) -> dict[str, float]:
        """The sums and the latest values so far."""
        return {**self._sums, **self._latest}


class _Lines:
    """A stream for logs: each redrawn bar becomes a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        for part in text.replace("\r", "\n").split("\n"):
            if part.strip() and part.rstrip() != self._last:
                self._last = part.rstrip()
                self._stream.write(self._last + "\n")

    def flush(self) -> None:
        self._stream.flush()


class ProgressBar:
    """One stage's progress on the terminal: done of total, rate, time left; in a log, lines.

    Args:
        stage: Name that stands before the bar.
        total: Units of the whole stage.
        unit: What a unit is called.
        stream: Where to draw; a bar on a terminal, else a line every 10 seconds at most.
    """

    def __init__(self, stage: str, total: int, unit: str, stream: TextIO) -> None:
        self._terminal, self._total = stream.isatty(), total
        self._skipped, self._begun = 0, time.monotonic()
        self.bar: tqdm[Any] = tqdm(
            total=total, desc=f"{stage:9}", unit=f" {unit}", leave=True, smoothing=0.1,
            file=stream if self._terminal else _Lines(stream), ascii=not self._terminal,
            mininterval=0.2 if self._terminal else _LOG_EVERY_S, dynamic_ncols=self._terminal,
        )  # fmt: skip

    def show(self, counts: Mapping[str, float]) -> None:
        """Draw a meter's counts. Skipped units count as done, but not towards the rate."""
        bar, newly = self.bar, int(counts["skipped"]) - self._skipped
        self._skipped += newly
        bar.initial += newly
        bar.n += newly
        bar.last_print_n += newly
        bar.set_postfix_str(self._rates(counts), refresh=False)
        done = min(int(counts["units"] + counts["skipped"]), self._total)
        # An update by 0 would start tqdm's clock anew, and the next unit would seem to be fast.
        if done > bar.n:
            bar.update(done - bar.n)
        elif self._terminal:
            bar.refresh()

    def seconds_left(self) -> float | None:
        """What is left by the latest rate, seconds; nothing before the first unit is done."""
        shown = self.bar.format_dict
        mean = (shown["n"] - shown["initial"]) / max(shown["elapsed"], 1e-9)
        rate = shown["rate"] or mean
        return (self._total - shown["n"]) / rate if rate else None

    def _rates(self, counts: Mapping[str, float]) -> str:
        rate = counts["pixels"] / max(time.monotonic() - self._begun, 1e-9)
        parts = [f"{tqdm.format_sizeof(rate)} pixels/s"] if counts["pixels"] else []
        parts += [f"loss {counts['loss']:.4g}"] if "loss" in counts else []
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the last state on the terminal."""
        self.bar.close()


@contextmanager
def metered(
    stage: str, total: int, unit: str
) -> Iterator[tuple[ActorHandle[Any], Callable[[], dict[str, Any]]]]:
    """A meter whose count is shown as progress and exported while the stage runs.

    Yields:
        The meter's handle, and a function that gives the stage's record so far.
    """
    # On the driver's node: the loss of another must not take the counts away.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    meter: Any = ray.remote(num_cpus=0, label_selector=here)(Meter).remote()
    begun, stop = time.monotonic(), threading.Event()
    bar, metrics = ProgressBar(stage, total, unit, sys.stderr), StageMetrics(stage, unit)

    def show() -> None:
        counts: dict[str, float] = ray.get(meter.read.remote())
        bar.show(counts)
        left = {"units_left": max(0, total - counts["units"] - counts["skipped"])}
        if (seconds := bar.seconds_left()) is not None:
            left["seconds_left"] = seconds
        metrics.update({**counts, **left}, time.monotonic() - begun)

    def watch() -> None:
        for looks in itertools.count(1):
            if stop.wait(_POLL_S):
                return
            if looks % _TRIM_EVERY == 0:
                give_back_memory()
            try:
                show()
            except ray.exceptions.RayError:
                return  # the cluster is gone, or the meter: the stage fails with it, and says so

    def record() -> dict[str, Any]:
        counts: dict[str, Any] = ray.get(meter.read.remote())
        kept = ("pixels", "bytes_read", "bytes_written", "unet_passes")
        peak = max(counts["peak_rss_bytes"], peak_rss())
        return {name: counts[name] for name in kept} | {
            "peak_rss_bytes": peak, "wall_s": time.monotonic() - begun,
        }  # fmt: skip

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield meter, record
        show()
    finally:
        stop.set()
        watcher.join()
        bar.close()
        ray.kill(meter)
