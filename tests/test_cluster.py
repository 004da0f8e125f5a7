"""Sharing out a cluster: what fits, and what is refused before anything starts."""

import os
import socket
from typing import Any

import pytest
import ray
import ray.data

from pipeline.cluster import check_answers, ray_session, share_out
from pipeline.config import ClusterConfig
from pipeline.errors import UserError
from pipeline.units import IO_CPUS


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def make(cpus: float, gpus: float = 0, nodes: int = 1) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})
        each = {"Alive": True, "Resources": {"CPU": cpus / nodes, "GPU": gpus / nodes}}
        monkeypatch.setattr(ray, "nodes", lambda: [each] * nodes)

    return make


@pytest.mark.parametrize("cpus", [1, 2, 3, 16, 2000])
def test_actors_leave_room_for_a_read_and_a_write(cpus: int, machine) -> None:
    machine(cpus)
    shares = share_out(ClusterConfig())
    assert shares.actors * shares.threads == cpus
    assert shares.actors * shares.num_cpus + 2 * IO_CPUS <= cpus
    assert shares.workers * shares.worker_cpus < cpus


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("cpus", [*range(3, 18), 32, 64, 192])
def test_no_actor_more_fits_into_a_node(cpus: int, threads: int, machine) -> None:
    """A pool that may grow must grow by new nodes alone."""
    machine(2 * cpus, nodes=2)
    shares = share_out(ClusterConfig(threads=threads))
    assert shares.actors == 2 * (cpus // threads)
    assert cpus // shares.num_cpus == cpus // threads


def test_gpus_are_taken_when_there_are_any(machine) -> None:
    machine(32, gpus=4)
    shares = share_out(ClusterConfig(train_workers=4))
    assert (shares.actors, shares.num_gpus) == (4, 1)
    assert share_out(ClusterConfig(gpu=False)).num_gpus == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"actors": 3}, "cluster.actors = 3.*2.5 CPUs.*2 CPUs"),
        ({"threads": 4}, "cluster.threads = 4"),
        ({"gpu": True}, "no GPU"),
        ({"train_workers": 8}, "cluster.train_workers = 8 need 2.25 CPUs.* 2 CPUs"),
        ({"train_workers": 16, "min_train_workers": 8}, "cluster.min_train_workers = 8 need 2.25 CPUs"),
    ],
)
def test_what_cannot_be_placed_is_refused(settings: dict, words: str, machine) -> None:
    machine(2)
    with pytest.raises(UserError, match=words):
        share_out(ClusterConfig(**settings))


@pytest.mark.parametrize(("cpus", "gpus", "threads", "room"), [(3, 0, 2, 2), (5, 3, 2, 4), (5, 0, 3, 2)])
def test_actors_that_fit_the_cluster_but_not_its_nodes_are_refused(
    cpus: int, gpus: int, threads: int, room: int, machine
) -> None:
    """Two nodes; the last actor's threads, or its GPU, would lie on both."""
    machine(2 * cpus, gpus=2 * gpus, nodes=2)
    assert share_out(ClusterConfig(actors=room, threads=threads)).actors == room
    with pytest.raises(UserError, match=rf"actors = {room + 1} .* room for {room}$"):
        share_out(ClusterConfig(actors=room + 1, threads=threads))


def test_more_training_workers_than_cpus_share_them(machine) -> None:
    machine(2)
    assert share_out(ClusterConfig(train_workers=7)).worker_cpus == 0.25
    assert share_out(ClusterConfig(train_workers=16, min_train_workers=7)).worker_cpus == 0.25


@pytest.mark.parametrize("settings", [{"threads": 8}, {"train_threads": 16}])
def test_what_fits_the_cluster_but_no_node_is_refused(settings: dict, machine) -> None:
    machine(16, nodes=4)
    share_out(ClusterConfig(threads=4, train_threads=4))
    (name,) = settings
    with pytest.raises(UserError, match=rf"cluster\.{name} = .* the largest has 4"):
        share_out(ClusterConfig(**settings))


def test_what_computes_on_gpus_is_measured_by_the_nodes_that_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, worker = {"CPU": 32.0}, {"CPU": 8.0, "GPU": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 40.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": r} for r in (head, worker)])
    assert share_out(ClusterConfig()).worker_cpus <= 8
    assert share_out(ClusterConfig(gpu=False)).worker_cpus > 8
    with pytest.raises(UserError, match=r"cluster\.threads = 20 .*the cluster has 8 CPUs"):
        share_out(ClusterConfig(threads=20))


def test_reads_do_not_run_ahead_until_half_of_the_store_is_full() -> None:
    from ray.data._internal.execution import backpressure_policy as policies

    assert policies.DownstreamCapacityBackpressurePolicy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD == 0
    assert ray.data.DataContext.get_current().downstream_capacity_backpressure_ratio == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_cluster_that_answers_is_joined(host: str) -> None:
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.socket(family) as server:
        try:
            server.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip(f"this machine has no address {host}")
        server.listen()
        check_answers(f"{host}:{server.getsockname()[1]}")


def test_the_address_of_the_job_server_is_no_cluster() -> None:
    with pytest.raises(UserError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265: .* ray job submit"):
        check_answers("http://127.0.0.1:8265")


def test_a_cluster_that_is_gone_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no cluster answers there"), ray_session():
        pass


def test_fewer_gpus_than_workers_do_where_fewer_may_train(machine) -> None:
    machine(32, gpus=2)
    assert share_out(ClusterConfig(train_workers=4, min_train_workers=2)).workers == 4
    for settings, words in (({}, "train_workers = 4"), ({"min_train_workers": 3}, "min_train_workers = 3")):
        with pytest.raises(UserError, match=rf"cluster\.{words} need as many GPUs; the cluster has 2"):
            share_out(ClusterConfig(train_workers=4, **settings))


def test_a_ray_that_does_not_come_up_is_told_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = dict(os.environ)
    with pytest.raises(UserError, match=r"Ray did not start.*too busy.*again"), ray_session():
        pass
    assert dict(os.environ) == before


def test_no_cluster_to_find_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", nothing)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(UserError, match=r"RAY_ADDRESS=auto: no cluster answers .* unset RAY_ADDRESS"),
        ray_session(),
    ):
        pass
