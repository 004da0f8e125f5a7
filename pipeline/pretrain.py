"""Stage ``pretrain``: the diffusion U-Net, trained without labels on patches streamed by Ray Data."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train.collective import broadcast_from_rank_zero
from safetensors.torch import save_file

from mtmsd.diffusion import Schedule
from mtmsd.multistage import find_cuts
from mtmsd.steps import share_of
from mtmsd.training import Averaged, make_optimizer, pretrain_step
from mtmsd.unets import make_unet
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.checkpoints import checkpoints, drop_damaged, load_checkpoint, save_checkpoint
from pipeline.cluster import share_out
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.labels import hidden_blocks
from pipeline.progress import metered, peak_rss
from pipeline.readers import PatchReader, Reduced
from pipeline.scene import Scene
from pipeline.train import fit
from pipeline.units import Row, UnitSource, read_units

_REPORT_EVERY = 5
_INTERVAL_STEPS = 100
_INTERVAL_BYTES = 256 << 20
_INTERVAL_TASKS = 4
_CUT_PATCHES = 128


def run(config: Config, folder: RunFolder, scene: Scene, fingerprint: str) -> dict[str, Any]:
    """Train with Ray Train and write ``pretrain/unet.safetensors``; returns what was measured.

    Checkpoints lie in ``pretrain/``; the same run, started again, goes on from the last one. Nothing is
    trained for a classifier that reads no diffusion features.
    """
    if not config.reads_features:
        with metered("pretrain", 0, "steps") as (_, record):
            return record()
    shares = share_out(config.cluster)
    with metered("pretrain", config.pretrain.steps, "steps") as (meter, record):
        storage.make_folder(folder.pretrain)
        reduced = Reduced(str(folder.reduced), hidden_blocks(config, scene))
        config = _with_cuts(config, folder, reduced)
        settings = {
            "config": config.model_dump(mode="json"),
            "reduced": reduced,
            "folder": str(folder.pretrain),
            "threads": shares.worker_threads,
            "meter": meter,
        }
        drop_damaged(folder.pretrain)
        reached = fit(
            _train_loop,
            settings,
            name=f"diffusion-{fingerprint[:8]}",
            storage=folder.pretrain / "ray_train",
            workers=shares.workers,
            least=config.cluster.min_train_workers,
            resources={"CPU": shares.worker_cpus, "GPU": shares.num_gpus},
        )
        _check_whole(config, reached)
        _publish(config, folder, reduced.shape[0])
        return record()


def _with_cuts(config: Config, folder: RunFolder, reduced: Reduced) -> Config:
    """The same with the timesteps at which decoders change; found on the scene once, kept in ``cuts.json``.

    Raises:
        UserError: The scene's patches show no intervals.
    """
    if config.unet.kind == "single" or config.unet.cuts:
        return config
    found = folder.pretrain / "cuts.json"
    if not found.exists():
        sample, all_of_it = replace(config.pretrain, batch=_CUT_PATCHES), slice(0, _CUT_PATCHES)
        reader = PatchReader(reduced, config.patches, sample, config.seed, all_of_it)
        patches = torch.from_numpy(reader(0)["patches"])
        try:
            cuts = find_cuts(patches, Schedule(config.diffusion), config.unet, config.seed)
        except ValueError as error:
            raise UserError(f"pretrain: {error}") from None
        write_json(found, cuts)
    return config.model_copy(update={"unet": replace(config.unet, cuts=tuple(read_json(found)))})


def _publish(config: Config, folder: RunFolder, components: int) -> None:
    state = load_checkpoint(checkpoints(folder.pretrain)[-1])
    settings = config.model_dump(mode="json")
    metadata = {key: json.dumps(settings[key]) for key in ("unet", "diffusion", "patches", "pretrain")}
    metadata |= {"components": str(components), "steps": str(state["step"])}
    batch = config.pretrain.batch
    history = [{"step": step, "images": step * batch, "loss": loss} for step, loss in state["history"]]
    with storage.whole(folder.unet) as file:
        save_file({name: value.contiguous() for name, value in state["averaged"].items()}, file, metadata)
        write_json(folder.pretrain / "history.json", history)


def _train_loop(settings: dict[str, Any]) -> int:
    """One worker: its share of every step, from the last checkpoint on; returns the step that it reached."""
    config = Config.model_validate(settings["config"])
    torch.set_num_threads(settings["threads"])
    context = ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    share = share_of(config.pretrain.batch, rank, workers)
    reduced: Reduced = settings["reduced"]
    device = ray.train.torch.get_device()
    torch.manual_seed(config.seed)
    unet = make_unet(config.unet, reduced.shape[0]).to(device)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, averaged = make_optimizer(unet, config.pretrain), Averaged(unet, config.pretrain.ema)
    start, history = 0, []
    # One worker looks for it, lest another sees a shared file system as it was.
    found = checkpoints(storage.location(settings["folder"])) if rank == 0 else []
    checkpoint = broadcast_from_rank_zero(found[-1] if found else None)
    if checkpoint:
        state = load_checkpoint(checkpoint, device)
        unet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        averaged.weights, start, history = state["averaged"], state["step"], state["history"]
    # A step trains one decoder; the others have no gradient, on any worker.
    options = {"find_unused_parameters": config.unet.intervals > 1}
    model = ray.train.torch.prepare_model(unet, move_to_device=False, parallel_strategy_kwargs=options)
    schedule = Schedule(config.diffusion)
    meter: ActorHandle[Any] | None = settings["meter"] if rank == 0 else None
    if meter is not None:
        meter.begin_at.remote(start)
    losses: list[float] = []
    for step, patches in _patches(config, reduced, share, start, device):
        losses.append(
            pretrain_step(
                model, optimizer, schedule, config.pretrain, patches, seed=config.seed, step=step,
                share=share, workers=workers, cuts=config.unet.cuts or (),
            )
        )  # fmt: skip
        averaged.update(unet, step)
        done = step + 1
        last = done == config.pretrain.steps
        saved = done % config.pretrain.checkpoint_every == 0 or last
        if done % _REPORT_EVERY == 0 or saved:
            if not _is_finite(unet):
                return done
            history.append((done, float(np.mean(losses))))
            if meter is not None:
                _count(meter, config, reduced.shape[0], len(losses), history[-1][1])
            losses = []
        if saved:
            state = {
                "model": unet.state_dict(), "averaged": averaged.weights, "step": done,
                "optimizer": optimizer.state_dict(), "history": history,
            }  # fmt: skip
            if rank == 0:
                written = save_checkpoint(storage.location(settings["folder"]), done, state)
                if meter is not None:
                    meter.add.remote(0, 0, 0, written, 0)
            ray.train.report({"step": done, "loss": history[-1][1]})
    return config.pretrain.steps


def _patches(
    config: Config, reduced: Reduced, share: slice, start: int, device: torch.device
) -> Iterator[tuple[int, torch.Tensor]]:
    """(step, patches) of this worker in order; Ray Data reads the next interval meanwhile.

    An interval of steps is a small dataset of its own. One dataset for all steps would keep Ray Data's
    scheduling loop awake in this process, where it takes the interpreter from the training.
    """
    reader = PatchReader(reduced, config.patches, config.pretrain, config.seed, share)
    step_bytes = (share.stop - share.start) * reduced.shape[0] * config.patches.size**2 * 4
    length = int(np.clip(_INTERVAL_BYTES // step_bytes, 1, _INTERVAL_STEPS))
    steps = range(start, config.pretrain.steps)
    intervals = [steps[i : i + length] for i in range(0, len(steps), length)]

    def read(interval: range) -> list[Row]:
        source = UnitSource("pretrain: patches", interval, reader, step_bytes)
        # One process keeps up with a worker that computes on CPUs, and each takes seconds of them to start.
        tasks = _INTERVAL_TASKS if device.type == "cuda" else 1
        # No CPUs: where nodes were lost, the workers may hold all that are left.
        dataset = read_units(source, tasks=tasks, together=_INTERVAL_STEPS, num_cpus=0)
        return sorted(dataset.iter_rows(), key=lambda row: int(row["unit"]))

    with ThreadPoolExecutor(max_workers=1) as ahead:
        pending = [ahead.submit(read, interval) for interval in intervals[:1]]
        for following in range(1, len(intervals) + 1):
            rows = pending.pop().result()
            pending += [ahead.submit(read, more) for more in intervals[following : following + 1]]
            for row in rows:
                yield int(row["unit"]), torch.tensor(row["patches"], device=device)


def _is_finite(unet: torch.nn.Module) -> bool:
    """Whether the weights are numbers: the same on all workers, which a loss that is none is not at once."""
    return all(bool(torch.isfinite(weights).all()) for weights in unet.parameters())


def _check_whole(config: Config, reached: int) -> None:
    """Refuse what ended early.

    Raises:
        UserError: The weights were no numbers any more, and never would be again.
    """
    if reached < config.pretrain.steps:
        raise UserError(
            f"pretrain: expected finite weights, found others at step {reached}: the training has diverged; "
            f"lower pretrain.learning_rate (it is {config.pretrain.learning_rate:g}), with --from pretrain"
        )


def _count(meter: ActorHandle[Any], config: Config, components: int, steps: int, loss: float) -> None:
    patches = config.pretrain.batch * steps
    pixels = patches * config.patches.size**2
    meter.add.remote(steps, pixels, pixels * components * 4, 0, peak_rss(), patches)
    meter.observe.remote(loss=loss)
