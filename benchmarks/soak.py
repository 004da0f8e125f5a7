"""Does anything grow when one cluster maps again and again? Memory, files, threads, object store.

``python -m benchmarks.soak [--minutes 30]``: small maps, one after another, by one driver in one Ray of its
own. After each, what the driver and the processes below it hold (those of Ray, and its workers). Compares the
means of the first and the last third of the maps; exits with 1 where something grew by more than 5 %.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from benchmarks.processes import Holdings, cpu_below, holdings, kind
from benchmarks.record import publish
from benchmarks.stand_in import stand_in
from pipeline import map as map_stage
from pipeline.cluster import ray_session
from pipeline.config import load_config

SETTINGS = [
    "unet.channels=32", "patches.window=96", "patches.stride=72", "features.timesteps=[50]",
    "features.stages=[3,5]", "classifier.members=1", "map.tile=72",
]  # fmt: skip
COLUMNS = (
    *(f"{kind}, {of}" for of in ("driver", "all processes") for kind in ("MiB", "files", "threads")),
    "object store, MiB",
)
_TOLERANCE = 0.05
_SIDE = 288


def main() -> None:
    """Print what was held, first and last; exit with 1 where it grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    held, kinds = soak(options.minutes * 60)
    rows = compared(held)
    print(f"\nMiB by process, first and last third: {grown_most(kinds)}")
    publish(
        "soak", f"{len(held)} maps of {_SIDE} x {_SIDE} pixels in one Ray, {options.minutes:g} minutes",
        ["held", "first third", "last third", "ratio"], rows,
    )  # fmt: skip
    if grown := [f"{row[0]}: {row[3]:.3f} of what it was" for row in rows if row[3] > 1 + _TOLERANCE]:
        sys.exit("\n".join(grown))


def soak(seconds: float) -> tuple[list[list[float]], list[dict[str, float]]]:
    """Map until the time is over; what was held after each map, by ``COLUMNS``, and MiB by process."""
    config, work = load_config(None, SETTINGS), Path(tempfile.mkdtemp())
    held, kinds = list[list[float]](), list[dict[str, float]]()
    try:
        folder, scene = stand_in(work / "run", config, _SIDE, _SIDE)
        with ray_session():
            state, begun = get_state_from_address(ray.get_runtime_context().gcs_address), time.monotonic()
            while time.monotonic() - begun < seconds:
                folder.forget("map")
                map_stage.run(config, folder, scene)
                store = get_memory_info_reply(state).store_stats.object_store_bytes_used
                total, by_kind = _held()
                held.append([*total, store / 2**20])
                kinds.append(by_kind)
                print(" ".join(f"{value:.4g}" for value in held[-1]), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work)
    return held, kinds


def _held() -> tuple[list[float], dict[str, float]]:
    """Memory (MiB), files and threads of this process and of all together; memory by kind of process."""
    mine, by_kind = holdings(os.getpid()), dict[str, float]()
    all_of_them = [mine]
    for process in cpu_below():
        all_of_them.append(holdings(process))
        name = kind(process)
        by_kind[name] = by_kind.get(name, 0.0) + all_of_them[-1].memory / 2**20
    together = Holdings(*(sum(parts) for parts in zip(*all_of_them, strict=True)))
    total = [part for one in (mine, together) for part in (one.memory / 2**20, one.files, one.threads)]
    return total, by_kind


def grown_most(kinds: list[dict[str, float]], most: int = 5) -> str:
    """The kinds of process that gained most memory, in words."""
    third = max(1, len(kinds) // 3)
    names = {name for held in kinds for name in held}

    def mean(name: str, part: list[dict[str, float]]) -> float:
        return sum(held.get(name, 0.0) for held in part) / len(part)

    found = [(name, mean(name, kinds[:third]), mean(name, kinds[-third:])) for name in names]
    found.sort(key=lambda row: row[1] - row[2])
    return "; ".join(f"{name} {before:.0f} to {after:.0f}" for name, before, after in found[:most])


def compared(held: list[list[float]]) -> list[tuple[str, float, float, float]]:
    """Each quantity's mean over the first and the last third of the maps, and their ratio."""
    third = max(1, len(held) // 3)
    first, last = np.mean(held[:third], axis=0), np.mean(held[-third:], axis=0)
    ratio = np.where(first > 0, last / np.maximum(first, 1e-9), np.where(last > 0, np.inf, 1.0))
    return [
        (name, float(before), float(after), float(grown))
        for name, before, after, grown in zip(COLUMNS, first, last, ratio, strict=True)
    ]


if __name__ == "__main__":
    main()
