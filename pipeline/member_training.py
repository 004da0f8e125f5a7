"""What workers of stage ``classify`` do: train members, their twins, and the one that ranks timesteps.

Members are trained on one torch thread each, so their weights depend on the seed alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import zarr
from safetensors.torch import save_file

from mtmsd.calibration import twin_folds
from mtmsd.classifier import Member, Sizes
from mtmsd.experts import fit_expert, training_input
from mtmsd.features import stage_widths
from mtmsd.hyperfeatures import heaviest
from mtmsd.members import History, Pixels, held_out_logits, train_member, training_margin
from mtmsd.purify import Selection
from mtmsd.split import TRAIN, block_of
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config
from pipeline.progress import peak_rss
from pipeline.trained import is_trained, read_timesteps

FEATURES = ("centre", "pooled", "spectra")
"""Arrays of features.zarr that members read."""


def train_members(settings: dict[str, Any]) -> None:
    """One worker trains every n-th member or expert."""
    config, folder, mine = _told(settings)
    pixels, sizes = _training_pixels(config, folder, read_timesteps(config, folder))
    folds = _folds(config, folder, pixels)
    for member in mine:
        if is_trained(config, folder, member):
            continue  # before a worker was lost
        if isinstance(member, str):
            path = _write_expert(config, folder, pixels, sizes, folds, member)
            settings["meter"].add.remote(1, 0, 0, path.stat().st_size, peak_rss())
            continue
        if config.classifier.calibrate:
            _write_held_out(config, folder, pixels, sizes, [fold == member for fold in folds], member)
        head, history = train_member(
            config.classifier, config.fusion, pixels, sizes, seed=config.seed, member=member
        )
        path = folder.member(member)
        about = described(config, sizes, history) | {"margin": str(training_margin(head, pixels))}
        _save(path, head.state_dict(), about)
        settings["meter"].add.remote(1, 0, 0, path.stat().st_size, peak_rss())
        settings["meter"].observe.remote(**history[-1])
    ray.train.report({"members": len(mine)})


def described(config: Config, sizes: Sizes, history: History) -> dict[str, str]:
    """What the file of a member says beside its weights, so that it can be built again."""
    shape = [sizes.timesteps, sum(sizes.stages), sizes.classes, sizes.spectra]
    return {
        "classifier": config.classifier.kind, "fusion": config.fusion.kind, "shape": json.dumps(shape),
        "stages": json.dumps(sizes.stages), "history": json.dumps(history),
    }  # fmt: skip


def keep_timesteps(settings: dict[str, Any]) -> None:
    """Write which timesteps remain: those of the largest mixing weights of a member that read all."""
    config, folder, (member,) = _told(settings)
    timesteps, keep = config.features.timesteps, config.fusion.keep_timesteps
    assert keep is not None
    assert isinstance(member, int)
    pixels, sizes = _training_pixels(config, folder, timesteps)
    head, _ = train_member(
        config.classifier, config.fusion, pixels, sizes, seed=config.seed, member=member
    )  # fmt: skip
    table = mixing_of(timesteps, config.features.stages, [head])
    assert table is not None
    kept = heaviest(torch.tensor(table["weights"]), keep)
    write_json(folder.mixing, table | {"kept": [timesteps[t] for t in kept]})
    ray.train.report({"timesteps": keep})


def _told(settings: dict[str, Any]) -> tuple[Config, RunFolder, list[int | str]]:
    """Configuration, run folder and trainees of a training worker, which computes on one thread."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    mine = settings["members"][context.get_world_rank() :: context.get_world_size()]
    return Config.model_validate(settings["config"]), RunFolder(storage.location(settings["folder"])), mine


def _training_pixels(config: Config, folder: RunFolder, timesteps: Sequence[int]) -> tuple[Pixels, Sizes]:
    """The training pixels on the worker's device, with the features of some timesteps."""
    group: Any = zarr.open_group(str(folder.features), mode="r", use_consolidated=False)
    train = np.flatnonzero(np.asarray(group["split"][...]) == TRAIN)
    stored, device = read_json(folder.selection), ray.train.torch.get_device()
    position = np.searchsorted(np.asarray(stored["codes"]), np.asarray(group["label"][...])[train])
    steps = steps_of(config, timesteps)
    centre, pooled, spectra = (torch.from_numpy(group[name].oindex[train]) for name in FEATURES)
    kinds = (centre[:, steps], pooled[:, steps], spectra, torch.from_numpy(position))
    widths = stage_widths(config.unet, config.features.stages, config.patches.side)
    stages = Selection.from_json(stored).per_stage(widths)
    sizes = Sizes(len(steps), stages, len(stored["codes"]), spectra.shape[1])
    return Pixels(*(kind.to(device) for kind in kinds)), sizes


def steps_of(config: Config, timesteps: Sequence[int]) -> list[int]:
    """Where some timesteps lie among those of the features."""
    return [config.features.timesteps.index(t) for t in timesteps]


def mixing_of(
    timesteps: Sequence[int], stages: Sequence[int], members: Sequence[Member]
) -> dict[str, Any] | None:  # fmt: skip
    """The members' mean mixing weights, if their fusion has such."""
    tables = [table for m in members if (table := m.dy_att.mixing_weights()) is not None]
    if not tables:
        return None
    weights = torch.stack(tables).mean(dim=0).detach().tolist()
    return {"timesteps": list(timesteps), "stages": list(stages), "weights": weights}


def _folds(config: Config, folder: RunFolder, pixels: Pixels) -> list[torch.Tensor]:
    """The fold of each training pixel: of pixels and, where the split is by blocks, of blocks."""
    block = None
    if config.split.protocol == "blocks":
        group: Any = zarr.open_group(str(folder.features), mode="r", use_consolidated=False)
        y, x, split = (np.asarray(group[name][...]) for name in ("y_index", "x_index", "split"))
        block = block_of(y, x, config.split)[split == TRAIN]
    position = pixels.position_N.cpu().numpy()
    folds = twin_folds(position, config.classifier.members, config.seed, block)
    return [torch.from_numpy(fold).to(pixels.position_N.device) for fold in folds]


def _write_held_out(
    config: Config, folder: RunFolder, pixels: Pixels, sizes: Sizes, held: list[torch.Tensor], member: int
) -> None:
    """What a member's twins say of the training pixels that they were not given; ``kind``: which twin,
    ``pixel``: which training pixels."""
    said = {
        "logits": [torch.empty((0, sizes.classes))],
        "position": [torch.empty(0, dtype=torch.long)],
        "kind": [torch.empty(0, dtype=torch.long)],
        "pixel": [torch.empty(0, dtype=torch.long)],
    }
    for kind, mask in enumerate(held):
        if mask.any():
            logits = held_out_logits(
                config.classifier, config.fusion, pixels, sizes, mask, seed=config.seed, member=member
            )
            said["logits"].append(logits.cpu())
            said["position"].append(pixels.position_N[mask].cpu())
            said["kind"].append(torch.full((len(logits),), kind))
            said["pixel"].append(mask.nonzero()[:, 0].cpu())
    _save(folder.held_out(member), {name: torch.cat(parts) for name, parts in said.items()})


def _write_expert(
    config: Config, folder: RunFolder, pixels: Pixels, sizes: Sizes, folds: list[torch.Tensor], name: str
) -> Path:
    path, inputs = folder.expert(name), training_input(name, pixels, config.classifier.standardise)
    expert, held_out = fit_expert(inputs, pixels.position_N, sizes.classes, folds)
    if config.classifier.calibrate:
        _save(folder.held_out(name), {"logits": held_out})
    _save(path, expert.state_dict())
    return path


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write whole or not at all."""
    with storage.whole(path) as file:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, file, metadata)
