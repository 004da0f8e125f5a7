"""Ray Train, as both stages that train use it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.actor import ActorHandle
from ray.train.torch import TorchTrainer

from pipeline.storage import is_local

_RETRIES = 3


class _Trainer(TorchTrainer):
    """Leaves SIGINT to the run: Ray's handler stays after the training, and then ends with exit code 0."""

    def _register_sigint_handler(self, controller: ActorHandle[Any]) -> None:
        pass


def fit(
    loop: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    *,
    name: str,
    storage: Path,
    workers: int,
    resources: dict[str, float],
    least: int | None = None,
) -> Any:
    """Run a training loop on workers; when one dies, all begin the loop anew, three times at most.

    Returns what the loop of the first worker returns.

    Args:
        loop: What each worker does; it keeps and finds its own results.
        settings: What it is told.
        name: Of the run in the dashboard.
        storage: Folder of Ray Train's own notes, which no later run needs; it is removed. Where a run
            folder lies in an object store, a temporary folder of this machine stands for it.
        workers: Their number.
        resources: CPUs and GPUs of one worker.
        least: So few workers go on where there is no room for all; absent: all wait for room.
    """
    notes = storage if is_local(storage) else Path(tempfile.mkdtemp(prefix="mtmsd-"))
    shutil.rmtree(notes, ignore_errors=True)
    use_gpu = resources["GPU"] > 0
    number: Any = (least, workers) if least else workers  # Ray's annotation knows no pair
    trainer = _Trainer(
        loop,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(
            num_workers=number,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            # Workers that ask for half of a node's CPUs would otherwise share one node of many.
            placement_strategy="PACK" if use_gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(notes),
            failure_config=ray.train.FailureConfig(max_failures=_RETRIES),
        ),
    )
    try:
        result: Any = trainer.fit()  # Ray's annotation is that of an earlier Result
        return result.return_value
    finally:
        shutil.rmtree(notes, ignore_errors=True)
