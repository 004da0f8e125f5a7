"""What every benchmark shares: timing, a small table, and a JSON file with machine, commit and date."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.defaults import processor_has_bfloat16

_ROOT = Path(__file__).resolve().parent.parent
OUT = Path(os.environ.get("MTMSD_BENCHMARKS", "runs/benchmarks"))
"""Folder of the JSON files."""


def run_folder(text: str) -> Path:
    """A command line's run folder; argparse tells the user where there is none."""
    if not (Path(text) / "run.json").exists():
        raise argparse.ArgumentTypeError(f"{text}: expected the folder of a run, found no run.json in it")
    return Path(text)


def about() -> dict[str, Any]:
    """Date, commit, machine and command of the measurement."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((r.partition(":")[2].strip() for r in rows if r.startswith("model name")), cpu)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": f"{commit} with changes" if git("status", "--porcelain", "-uno") else commit,
        "machine": f"{cpu}, {os.cpu_count()} cores{gpu}, {platform.system()}, "
        f"Python {platform.python_version()}",
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def seconds(work: Callable[[], object], least: float = 1.0) -> float:
    """Mean wall time of one call: warmed up once, then repeated for at least ``least`` seconds."""
    work()
    begun, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begun < least:
        work()
        calls += 1
    return (time.perf_counter() - begun) / calls


def in_turns(ways: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Wall times of each way, (way, round): all ways in each round, because the machine's speed drifts.

    Ratios are those of one round; their median is reported.
    """
    for work in ways:
        work()
    spent: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for work, mine in zip(ways, spent, strict=True):
            begun = time.perf_counter()
            work()
            mine.append(time.perf_counter() - begun)
    return spent


def arithmetics(*, emulated: bool = False) -> tuple[Literal["float32", "bfloat16"], ...]:
    """What to measure: bfloat16 only where the processor has it, or as it is ``emulated`` elsewhere."""
    return ("float32", "bfloat16") if emulated or processor_has_bfloat16() else ("float32",)


def offer_emulated(parser: argparse.ArgumentParser) -> None:
    """Add the option for ``arithmetics``."""
    parser.add_argument(
        "--emulated", action="store_true",
        help="measure bfloat16 even if the processor has no instructions for it",
    )  # fmt: skip


def publish(name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table and write ``OUT/name.json``."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_cell(value) for value in row)} |", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    (OUT / f"{name}.json").write_text(json.dumps(about() | {"title": title, "rows": table}, indent=1))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
