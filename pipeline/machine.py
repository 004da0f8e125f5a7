"""What there is to work with: the cluster that a run would join, or this machine."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from pipeline.cluster import joins_cluster, ray_session
from pipeline.config import Config
from pipeline.storage import is_local


@dataclass(frozen=True)
class Machine:
    """What there is: CPUs in all, memory of the smallest node, nodes, bytes free for the run folder, GPUs."""

    cpus: int
    node_bytes: int
    nodes: int
    free_bytes: int | None
    """None: the run folder lies in an object store."""
    gpus: int = 0

    def uses_gpu(self, config: Config) -> bool:
        """Whether actors and training workers take a GPU each."""
        return self.gpus > 0 and config.cluster.gpu is not False

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        units = f"{self.cpus} CPUs" + (f" and {self.gpus} GPUs" if self.gpus else "")
        memory = shown(self.node_bytes)
        free = "an object store" if self.free_bytes is None else f"{shown(self.free_bytes)} of disk free"
        return f"at hand: {nodes}, {units} in all, {memory} of memory a node, {free}"


def machine_at_hand(folder: Path) -> Machine:
    """The cluster that the run would join, or else this machine."""
    free = None
    if is_local(folder):
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if joins_cluster():
        with ray_session(quiet=True):
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [node for node in nodes if node.get("CPU")]
        memory = min((int(node["memory"]) for node in nodes), default=0)
        cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
        return Machine(cpus, memory, max(1, len(nodes)), free, gpus)
    return Machine(*_own_share(), 1, free, torch.cuda.device_count())


def _own_share(limits: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """CPUs and bytes of memory of this machine, or of the container that this process runs in."""
    cpus, memory = os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (file := limits / "cpu.max").exists():
        quota, period = file.read_text().split()
        cpus = min(cpus, max(1, int(quota) // int(period))) if quota.isdigit() else cpus
    if (file := limits / "memory.max").exists() and (text := file.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return cpus, memory


def shown(count: int) -> str:
    """Bytes for people: 1.5 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"
