"""The Slurm script, the container file, the wait for nodes and the pages beside them."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner

from cluster import wait_for

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
SLURM = CLUSTER / "slurm.sh"
TEXTS = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def test_slurm_script_is_sound() -> None:
    assert SLURM.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(SLURM)], check=True, timeout=20)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    subprocess.run(["shellcheck", str(SLURM)], check=True, timeout=60)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A folder with stand-ins for Slurm and Ray, as the environment of a job on two nodes."""
    home, tools = tmp_path / "submit", tmp_path / "tools"
    stand_ins = {
        tools / "scontrol": 'printf "gpu-7\\ngpu-9\\n"',
        tools / "srun": 'while [ "${1#--}" != "$1" ]; do echo "$1" >> "$SEEN"; shift; done; exec "$@"',
        tools / "hostname": "echo 10.1.2.3 10.9.9.9",
        home / ".venv/bin/ray": 'printf "%s\\n" "$@" RAY_AUTH_MODE="$RAY_AUTH_MODE" >> "$SEEN"',
    }
    for path, body in stand_ins.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen"),
        "SLURM_SUBMIT_DIR": str(home), "SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "gpu-[7,9]",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SLURM), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def test_slurm_starts_one_ray_on_all_nodes_with_a_token(slurm: dict[str, str]) -> None:
    result = submit(slurm, "/data/my scene.zarr", "--out", "/data/run")
    assert result.returncode == 0, result.stderr
    seen = Path(slurm["SEEN"]).read_text().splitlines()
    assert seen[:3] == ["get-auth-token", "--generate", "RAY_AUTH_MODE=token"]
    start = seen[seen.index("symmetric-run") :]
    assert start[start.index("--address") + 1] == "10.1.2.3:24242"
    assert start[start.index("--min-nodes") + 1] == "2"
    assert {"--num-cpus=32", "--num-gpus=4", "--dashboard-host=127.0.0.1"} <= set(start)
    # ray symmetric-run refuses these.
    assert not {"--head", "--port", "--node-ip-address", "--block"} & set(start)
    command = start[start.index("--") + 1 :]
    assert command == [
        "env", "RAY_ADDRESS=10.1.2.3:24242", "python", "-u", "pipeline/run.py", "/data/my scene.zarr",
        "--out", "/data/run", "RAY_AUTH_MODE=token",
    ]  # fmt: skip
    assert "--nodelist=gpu-7" in seen


def test_slurm_says_what_is_missing(slurm: dict[str, str]) -> None:
    assert submit(slurm).returncode == 2
    Path(slurm["SLURM_SUBMIT_DIR"], ".venv/bin/ray").unlink()
    result = submit(slurm, "scene.zarr")
    assert result.returncode == 2
    assert "make .venv/ready" in result.stderr


def test_slurm_requeues() -> None:
    options = re.findall(r"^#SBATCH (.*)$", SLURM.read_text(), re.MULTILINE)
    assert {"--requeue", "--exclusive", "--ntasks-per-node=1", "--open-mode=append"} <= set(options)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_the_image_has_the_pinned_packages() -> None:
    (install,) = [value for name, value in instructions() if "pip install" in value]
    torch = re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch
    assert f"install --no-cache-dir {torch[0]} " in install
    assert "--constraint constraints.txt" in install
    for value in (value for name, value in instructions() if name == "COPY"):
        for source in value.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_the_image_is_safe_by_default() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER"}
    assert [value for name, value in found if name == "USER"] == ["ray"]
    assert any("RAY_AUTH_MODE=token" in value for name, value in found if name == "ENV")
    # ray up mounts the token below the HOME of the image's environment, /root where it states none.
    assert any("HOME=/home/ray" in value.split() for name, value in found if name == "ENV")
    assert any("--owner ray" in value and "/home/ray/.ray" in value for name, value in found if name == "RUN")
    assert not any(":latest" in value or ":" not in value for name, value in found if name == "FROM")


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|[0-9a-f]{32,}|[A-Za-z0-9+/]{40,}={0,2}"
    r"|(?i:password|passwd|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{12,}"
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    text = re.sub(r"https?://\S+", "", path.read_text())
    assert not SECRET.findall(text)


def test_secrets_would_be_found() -> None:
    for secret in (
        "auth_token: 3q2-7wAAAAAAAAAA",
        "f" * 64,
        "AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN RSA PRIVATE",
    ):
        assert SECRET.search(secret), secret


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_nothing_is_opened_to_the_world(path: Path) -> None:
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert "RAY_AUTH_MODE=disabled" not in text
    assert "LoadBalancer" not in text


def test_the_readme_explains_every_file_and_blank() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for path in TEXTS:
        for blank in re.findall(r"REPLACE_[A-Z0-9_]+", path.read_text()):
            assert f"`{blank}`" in readme, blank
    for name in (
        "rayjob.yaml",
        "raycluster.yaml",
        "networkpolicy.yaml",
        "aws.yaml",
        "machines.yaml",
        "slurm.sh",
    ):
        assert name in readme
    ways = re.split(r"^## ", readme, flags=re.MULTILINE)[1:]
    ways = [way for way in ways if not way.startswith(("The scene", "The image", "Object stores", "What "))]
    assert len(ways) == 6
    for way in ways:
        for word in ("**Start**", "ubmit**", "**Watch**", "**Stop**"):
            assert word in way, (word, way.splitlines()[0])


class Autoscaler:
    """A cluster that has one GPU more each time it is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.gpus, self.most, self.asked = 0, most, []
        monkeypatch.setattr(ray, "init", lambda **_: None)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(ray, "cluster_resources", self.look)
        monkeypatch.setattr(wait_for, "request_resources", lambda bundles: self.asked.append(bundles))
        monkeypatch.setattr(wait_for, "_POLL_S", 0.01)

    def look(self) -> dict[str, Any]:
        self.gpus = min(self.most, self.gpus + 1)
        return {"CPU": 4.0, "GPU": float(self.gpus)} if self.gpus > 1 else {"CPU": 4.0}


def test_the_run_starts_when_the_nodes_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster, made = Autoscaler(monkeypatch, most=3), tmp_path / "made"
    code = f"open({str(made)!r}, 'w'); raise SystemExit(7)"
    command = ["--gpus", "3", "--cpus", "2", "--", sys.executable, "-c", code]
    result = CliRunner().invoke(wait_for.main, command)
    assert result.exit_code == 7  # the command's own
    assert made.exists()
    assert cluster.gpus == 3
    assert cluster.asked == [[{"GPU": 1}] * 3 + [{"CPU": 1}] * 2, []]
    assert "2 of 3 GPUs" in result.output


def test_a_command_that_is_asked_to_end_tidies_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster, ready = Autoscaler(monkeypatch, most=1), tmp_path / "ready"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        f"open({str(ready)!r}, 'w')\n"
        "time.sleep(60)"
    )

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
    result = CliRunner().invoke(wait_for.main, ["--cpus", "2", "--", sys.executable, "-c", code])
    assert result.exit_code == 7
    assert cluster.asked[-1] == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_nodes_that_never_come_end_the_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster, made = Autoscaler(monkeypatch, most=2), tmp_path / "made"
    command = ["--gpus", "3", "--timeout", "0.05", "--", sys.executable, "-c", f"open({str(made)!r}, 'w')"]
    result = CliRunner().invoke(wait_for.main, command)
    assert result.exit_code == 1
    assert "2 of 3 GPUs" in result.output
    assert not made.exists()
    assert cluster.asked[-1] == []


def test_without_a_cluster_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(ray, "init", refuse)
    result = CliRunner().invoke(wait_for.main, ["--gpus", "1", "--", "true"])
    assert result.exit_code == 1
    assert "expected a running Ray cluster, found none" in result.output


def test_a_wait_for_nothing_is_refused() -> None:
    assert CliRunner().invoke(wait_for.main, ["--", "true"]).exit_code == 2
