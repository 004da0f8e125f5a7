"""Ray: start or join a cluster, share out its CPUs and GPUs.

Actors take a little less than a CPU per torch thread, so that a read and a write (1/8 CPU each) always find
room: pools that take every CPU wait for ever for their input. Threads times actors are the cores.
"""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # the dashboard's Train tab
# Ray Train sees only when it asks that its workers have ended; every two seconds, if nothing is said.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Reads stay ahead of the actors by twice what these hold, and do not fill half of the object store first.
os.environ.setdefault("RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD", "0")

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from pipeline.config import ClusterConfig
from pipeline.errors import UserError
from pipeline.units import IO_CPUS

_SPARE_CPUS = 0.5
"""What the actors leave of the largest node; one actor more must not fit into it."""
_LEAST_CPUS = 0.75
"""Of an actor's thread, where nodes have but one CPU or two."""
_RETRIES = 10
"""Of a unit whose actor dies; an actor starts again twice as often. Ray would try for ever."""
_IDLE_MS = 600_000
_ANSWER_S = 10
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_ROOT = str(Path(__file__).resolve().parent.parent)


def joins_cluster() -> bool:
    """Whether there is a cluster to join: that of this job or of RAY_ADDRESS."""
    return _IN_JOB in os.environ or "RAY_ADDRESS" in os.environ


@contextmanager
def ray_session(quiet: bool = False) -> Iterator[None]:
    """Join the cluster of this job or of RAY_ADDRESS; without one, start Ray here and stop it at the end.

    Says where the dashboard is, unless it is to be ``quiet``.
    """
    if ray.is_initialized():
        _quiet_data()
        yield
        return
    inside_job, joined = _IN_JOB in os.environ, joins_cluster()
    environment = os.environ.copy()
    # Threads that spin while they wait ruin each other on busy cores (7.2 s a step against 2.0 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not joined:
            _own_environment()
        elif not inside_job:
            check_answers(os.environ["RAY_ADDRESS"])
        context = _init(
            address=None if joined else "local",
            runtime_env=None if inside_job or not joined else {"env_vars": {"PYTHONPATH": _ROOT}},
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
        )
        if context.dashboard_url and not quiet:
            print(f"Ray dashboard: http://{context.dashboard_url}", file=sys.stderr)
        _quiet_data()
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(environment)


def _init(**how: Any) -> Any:
    """``ray.init``; Ray gives each of its processes half a minute, which a very busy machine may exceed.

    Raises:
        UserError: Ray did not come up.
    """
    try:
        return ray.init(**how)
    except Exception as error:
        # Ray raises a bare Exception here.
        if isinstance(error, ConnectionError) and "RAY_ADDRESS" in os.environ:
            raise UserError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no cluster answers ({error}); start it, or unset "
                "RAY_ADDRESS to start Ray on this machine"
            ) from error
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start within its time: the machine is too busy or short of memory; free some, "
            "then give the same command again"
        ) from error


def check_answers(address: str) -> None:
    """Raise at once where nothing listens: Ray would try for minutes.

    Raises:
        UserError: No cluster answers at the address.
    """
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address}: is where jobs are sent; use it with ray job submit, or unset "
            "RAY_ADDRESS to start Ray on this machine"
        )
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "://" in address:
        return  # such as auto; Ray finds it, or says what is wrong
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no cluster answers there ({error.strerror or error}); start it, or "
            "unset RAY_ADDRESS to start Ray on this machine"
        ) from None


def _own_environment() -> None:
    """What the processes of a Ray of our own inherit (a runtime_env would start each one anew).

    Processes that wait are kept: Ray ends those beyond the CPUs after a second, and the next stage would
    spend seconds of each core on starting as many again.

    Its address is fixed beforehand: Ray Train looks it up, and with a second Ray on the machine it
    would find the wrong one and end the training.
    """
    paths = [_ROOT, os.environ.get("PYTHONPATH", "")]  # an empty one would be the current folder
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_IDLE_MS))
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"


def _quiet_data() -> None:
    """Our own progress stands for Ray Data's; its log files stay."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1  # a batch on a slow machine may take long
    # Else Ray reserves a sixth of all CPUs for reads, then what actors hold: on one to three CPUs nothing is
    # left for writes, and finished tiles wait until all are read. Now each gets what one of its tasks needs.
    context.op_resource_reservation_ratio = 0.0
    # A pool whose actors are all busy takes what a node that joins has to offer.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


@dataclass(frozen=True)
class Shares:
    """What one actor or training worker gets, and how many of them there are."""

    actors: int
    fixed: bool
    threads: int
    num_cpus: float
    num_gpus: int
    workers: int
    worker_threads: int
    worker_cpus: float

    @property
    def gpu(self) -> bool:
        """Whether an actor computes on a GPU."""
        return self.num_gpus > 0

    def through_actors(
        self, dataset: ray.data.Dataset, units: int, actor: type, arguments: tuple[Any, ...]
    ) -> ray.data.Dataset:
        """Take each row through a pool of actors, no more of them than units.

        Unless their number is fixed, the pool grows by what nodes that join have room for.
        """
        least = max(1, min(self.actors, units))
        with warnings.catch_warnings():
            # Ray 2.60 wants all arguments by names of its own, and has none for the two last ones.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return dataset.map_batches(
                actor,
                fn_constructor_args=arguments,
                batch_size=1,
                compute=ActorPoolStrategy(
                    min_size=least,
                    max_size=least if self.fixed else max(1, units),
                    max_tasks_in_flight_per_actor=2 if self.gpu else 1,
                ),
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
                max_restarts=2 * _RETRIES,
                max_task_retries=_RETRIES,
            )


def share_out(config: ClusterConfig) -> Shares:
    """Fit the configuration to the cluster as it is now.

    Raises:
        UserError: The cluster has too few CPUs or GPUs for the actors or workers that were asked for.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    use_gpu = gpus > 0 if config.gpu is None else config.gpu
    if use_gpu and not gpus:
        raise UserError("cluster.gpu: true, but the cluster has no GPU; set cluster.gpu=false")
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # What computes on GPUs finds room only where they are.
    usable = [found for found in alive if found.get("GPU", 0) > 0 or not use_gpu]
    nodes = [count for found in usable if (count := found.get("CPU", 0))] or [1]
    cpus = int(sum(nodes)) if use_gpu else cpus
    actors = config.actors or (gpus if use_gpu else max(1, sum(int(n // config.threads) for n in nodes)))
    num_cpus = config.threads * max(_LEAST_CPUS, 1 - _SPARE_CPUS / max(nodes))
    needed = actors * num_cpus + 2 * IO_CPUS
    if needed > cpus or (use_gpu and actors > gpus):
        raise UserError(
            f"cluster.actors = {actors} with cluster.threads = {config.threads} need "
            f"{needed:g} CPUs{f' and {actors} GPUs' if use_gpu else ''}; "
            f"the cluster has {cpus} CPUs and {gpus} GPUs"
        )
    if num_cpus > max(nodes):
        raise UserError(
            f"cluster.threads = {config.threads} need a node of {num_cpus:g} CPUs; the largest has "
            f"{max(nodes):g}"
        )
    places = [int(found.get("CPU", 0) // num_cpus) for found in usable]
    if use_gpu:
        places = [min(n, int(found["GPU"])) for n, found in zip(places, usable, strict=True)]
    if actors > sum(places):
        raise UserError(
            f"cluster.actors = {actors} with cluster.threads = {config.threads} take {num_cpus:g} CPUs"
            f"{' and a GPU' if use_gpu else ''} of one node each; the nodes have room for {sum(places)}"
        )
    worker_threads, worker_cpus = _for_training(config, cpus, gpus if use_gpu else None, nodes)
    return Shares(
        actors=actors,
        fixed=config.actors is not None,
        threads=config.threads,
        num_cpus=num_cpus,
        num_gpus=int(use_gpu),
        workers=config.train_workers,
        worker_threads=worker_threads,
        worker_cpus=worker_cpus,
    )


def _for_training(
    config: ClusterConfig, cpus: int, gpus: int | None, nodes: list[float]
) -> tuple[int, float]:
    """Threads and CPUs of a training worker, half of which are left to what reads for it."""
    workers = config.train_workers
    least = config.min_train_workers or workers
    setting = "min_train_workers" if config.min_train_workers else "train_workers"
    if gpus is not None and least > gpus:
        raise UserError(f"cluster.{setting} = {least} need as many GPUs; the cluster has {gpus}")
    threads = config.train_threads or max(1, cpus // max(workers, len(nodes)))
    worker_cpus = max(0.25, min(threads, cpus / workers) * 0.5)
    if worker_cpus > max(nodes):
        raise UserError(
            f"cluster.train_threads = {threads} need a node of {worker_cpus:g} CPUs; the largest has "
            f"{max(nodes):g}"
        )
    if (needed := least * worker_cpus + 2 * IO_CPUS) > cpus:
        raise UserError(f"cluster.{setting} = {least} need {needed:g} CPUs; the cluster has {cpus} CPUs")
    return threads, worker_cpus
