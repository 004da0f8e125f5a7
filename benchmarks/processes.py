"""What the processes below this one use, read from /proc (Linux)."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """CPU seconds so far, resident bytes, open files and threads."""

    cpu_s: float
    rss: int
    files: int
    threads: int


def descendants() -> dict[int, Process]:
    """All processes that this one has started, and those that they have, by process id."""
    parents, found = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent, process = _read(entry)
        except OSError:  # ended meanwhile
            continue
        parents[int(entry.name)], found[int(entry.name)] = parent, process
    mine: dict[int, Process] = {}
    below = {os.getpid()}
    while below := {process for process, parent in parents.items() if parent in below}:
        mine |= {process: found[process] for process in below}
    return mine


def this() -> Process:
    """The process itself."""
    return _read(Path("/proc/self"))[1]


def _read(entry: Path) -> tuple[int, Process]:
    fields = (entry / "stat").read_text().rpartition(")")[2].split()
    user, system = map(int, fields[11:13])
    files = len(os.listdir(entry / "fd")) if os.access(entry / "fd", os.R_OK) else 0
    resident = int(fields[21]) * _PAGE
    return int(fields[1]), Process((user + system) / _TICKS, resident, files, int(fields[17]))
