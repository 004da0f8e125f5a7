"""CPU time and holdings of the processes below this one, read from /proc (Linux)."""

import os
import re
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_below() -> dict[int, float]:
    """CPU seconds so far of all processes that this one has started, and that they have, by process id."""
    parents, spent = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(entry.name)] = int(fields[1])
        spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    mine: dict[int, float] = {}
    below = {os.getpid()}
    while below := {process for process, parent in parents.items() if parent in below}:
        mine |= {process: spent[process] for process in below}
    return mine


class Holdings(NamedTuple):
    """What a process holds, or several together."""

    memory: int
    """Resident memory that no other process shares, bytes."""
    files: int
    """Open file descriptors."""
    threads: int


def holdings(process: int) -> Holdings:
    """What a living process holds; nothing when it has ended."""
    folder, private = Path("/proc") / str(process), 0
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Private"):
                private += int(line.split()[1]) * 1024
        return Holdings(private, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))
    except OSError:
        return Holdings(0, 0, 0)


def resident() -> int:
    """Resident memory of this process now, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def anonymous(process: int) -> int:
    """Resident memory of a living process that is neither a file's nor shared, bytes; 0 when it has ended."""
    try:
        status = (Path("/proc") / str(process) / "status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def kind(process: int) -> str:
    """What a living process is, in a word: that of Ray's title, or the program's or script's name."""
    try:
        words = (Path("/proc") / str(process) / "cmdline").read_text().split("\0")
    except OSError:
        return ""
    if words[0].startswith("ray::"):
        return re.split(r"[(. ]", words[0])[0]
    scripts = [word for word in words if word.endswith(".py")]
    return Path((scripts or words)[0]).name
