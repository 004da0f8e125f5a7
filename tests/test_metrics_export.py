"""Metrics of a real run in a real Prometheus: a query answers during the run, and the sums are right."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "configs" / "tiny.yaml"
MONITORING = ROOT / "cluster" / "monitoring"
Query = Callable[[str], list[dict[str, Any]]]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif("MTMSD_SLOW" not in os.environ, reason="takes minutes: set MTMSD_SLOW=1"),
]


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """The instant vector that Prometheus answers."""
    question = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{url}/api/v1/query?{question}", timeout=10) as answer:
        body = json.load(answer)
    assert body["status"] == "success"
    return list(body["data"]["result"])


@pytest.fixture(scope="module")
def prometheus(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """A Prometheus with the project's own configuration, pointed at this test's Ray."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here (Debian: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    (target,) = config["scrape_configs"][0]["file_sd_configs"]
    target["files"] = [str(session / Path(target["files"][0]).name)]
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s", "scrape_timeout": "2s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(MONITORING / "rules.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--web.listen-address={address}",
                f"--storage.tsdb.path={folder / 'data'}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield lambda expression: ask(f"http://{address}", expression)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(query: Query, expression: str, seconds: float = 60) -> list[dict[str, Any]]:
    """What the query answers as soon as it answers anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := query(expression):
                return found
        except urllib.error.URLError:
            pass  # not listening yet
        time.sleep(0.5)
    raise AssertionError(f"nothing answered {expression} in {seconds} s")


def value(query: Query, expression: str) -> float:
    (sample,) = wait_for(query, expression)
    return float(sample["value"][1])


def test_prometheus_follows_a_run(prometheus: Query, tiny_scene: Path, tmp_path: Path) -> None:
    from pipeline.run import cli

    wait_for(prometheus, 'up{job="ray"} == 1')
    over, rates = threading.Event(), []

    def watch() -> None:
        while not over.wait(1):
            rates.extend(prometheus("ray_mtmsd_pixels_per_second > 0"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert cli([str(tiny_scene), "--config", str(TINY), "--out", str(tmp_path / "run")]) == 0
    finally:
        over.set()
        watcher.join()
    assert rates, "no query for pixels per second answered while the run went on"
    assert {"stage", "unit", "SessionName", "WorkerId"} <= set(rates[-1]["metric"])
    # Once exported, every pixel of the map has been counted once, and every step of the training.
    height, width = 96, 150
    assert value(prometheus, f'ray_mtmsd_pixels_total{{stage="map"}} >= {height * width}') == height * width
    steps = yaml.safe_load(TINY.read_text())["pretrain"]["steps"]
    assert value(prometheus, f'ray_mtmsd_units_total{{stage="pretrain"}} >= {steps}') == steps
    # Windows of 4 x 4 pixels: tiles of 16 x 16 (two), 16 x 6, 8 x 16 and 8 x 6, none in the empty tile; two
    # timesteps. Pretraining: 6 steps of 4 patches.
    assert value(prometheus, 'ray_mtmsd_unet_passes_total{stage="map"} >= 1568') == 1568
    assert value(prometheus, 'ray_mtmsd_unet_passes_total{stage="pretrain"} >= 24') == 24
    # What has ended looks neither stalled nor slow.
    assert not prometheus('ALERTS{alertstate="firing", alertname=~"Mtmsd.*"}')
    end = time.monotonic() + 60
    while prometheus("ray_mtmsd_units_left") and time.monotonic() < end:
        time.sleep(1)
    assert not prometheus("ray_mtmsd_units_left")
