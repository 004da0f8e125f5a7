"""Two hosts with addresses of their own and a shared folder; the link between them is cut.

A host is a network namespace. The kernel gives them to root alone.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults import Driver, assert_same, finish

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(1800)]
HEAD, OTHER = "10.79.0.1", "10.79.0.2"
_PORT = 6379
_PRIVATE = 'mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec "$@"'


class Host:
    """A network namespace with one address, and the Ray node in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.within = ("ip", "netns", "exec", name)

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def join(self, wire: str) -> None:
        self.ip("address", "add", f"{self.address}/24", "dev", wire)
        self.ip("link", "set", wire, "up")
        self.ip("link", "set", "lo", "up")

    def start_ray(self, *arguments: str) -> None:
        """All but the head get a ``/tmp/ray`` of their own; the driver must see that of the head."""
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", "--disable-usage-stats"]
        private = [] if "--head" in arguments else ["sh", "-c", _PRIVATE, "sh"]
        started = subprocess.run(
            [*self.within, *private, *ray, f"--node-ip-address={self.address}", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr

    def has(self, title: str) -> bool:
        """Whether a process of this name lives here."""
        for process in self._processes():
            try:
                if title in Path(f"/proc/{process}/cmdline").read_text():
                    return True
            except OSError:
                continue
        return False

    def _processes(self) -> list[str]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return found.stdout.split()

    def remove(self) -> None:
        subprocess.run(["kill", "-9", *self._processes()], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Host, Host]]:
    """Ray's head on one, a node on the other, with a token."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    first, second = (Host(f"mtmsd-{os.getpid()}-{n}", address) for n, address in enumerate((HEAD, OTHER)))
    if subprocess.run(["ip", "netns", "add", first.name], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not allowed here")
    try:
        subprocess.run(["ip", "netns", "add", second.name], check=True)
        first.ip("link", "add", "wire0", "type", "veth", "peer", "name", "wire1", "netns", second.name)
        first.join("wire0")
        second.join("wire1")
        first.start_ray("--head", f"--port={_PORT}")
        second.start_ray(f"--address={HEAD}:{_PORT}")
        yield first, second
    finally:
        for host in (first, second):
            host.remove()


@pytest.fixture(scope="module")
def undisturbed(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this machine alone. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(tiny_scene, folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "worker"),
    [("pretrain", "ray::RayTrainWorker"), ("map", "ray::MapWorker(MapBatches(MapActor))")],
)
def test_the_link_is_cut(
    stage: str,
    worker: str,
    undisturbed: Path,
    hosts: tuple[Host, Host],
    tiny_scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    here, there = hosts
    monkeypatch.setenv("RAY_ADDRESS", f"{HEAD}:{_PORT}")
    driver = Driver(tiny_scene, out, "--from", stage, within=here.within)
    while not there.has(worker):
        assert driver.process.poll() is None, driver.said
        time.sleep(0.05)
    there.ip("link", "set", "wire1", "down")
    assert driver.wait() == 0, driver.said
    assert_same(out, undisturbed)
