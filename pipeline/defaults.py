"""Settings that the scene and the machine decide where the user has not: what ``run.py SCENE`` runs with.

The rules know the scene's bands, size and labels, never its name; ``docs/accuracy.md`` has what they rest
on. They depend on the machine in one thing, the precision, and a run that was begun keeps its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mtmsd.split import SplitConfig
from pipeline.artifacts import RunFolder, read_json
from pipeline.cluster import joins_cluster
from pipeline.config import Config, make_config, merged, read_values
from pipeline.machine import machine_at_hand
from pipeline.scene import Scene

_BANDS_PER_COMPONENT = 16
_COMPONENTS = (6, 12)
_NARROW_PX = 96
_FOUR_PATCHES_PX = 4 * 48**2
_TRAIN_FRACTION = (0.05, 0.5)
_TRAIN_PER_CLASS = 25

Settings = dict[str, dict[str, Any]]


def scene_rules(scene: Scene) -> Settings:
    """What the scene decides.

    * A component for every 16 bands, at least 6 and at most 12, never more than the bands
      (of twelve or fewer those that hold data).
    * Patches of 48 pixels, of 32 where the scene is narrower than two of 48.
    * 2,000 steps of pretraining; 600 where there are no more pixels than in four patches of 48.
    * 5 % of the labels train; where labels are few, as many as give the classes 25 pixels on average, at most
      half.
    """
    least, most = _COMPONENTS
    bands = scene.bands
    if bands <= most and (filled := int(np.isfinite(scene.sampled_mean()).sum())):
        bands = filled  # where bands are few, one without data may be one too many
    components = min(max(least, round(scene.bands / _BANDS_PER_COMPONENT)), most, bands)
    small = scene.height * scene.width <= _FOUR_PATCHES_PX
    return {
        "reduce": {"components": components},
        "patches": {"size": 32 if min(scene.height, scene.width) < _NARROW_PX else 48},
        "pretrain": {"steps": 600 if small else 2_000},
        "split": {"train_fraction": _train_fraction(scene)},
    }


def _train_fraction(scene: Scene) -> float:
    counts = [count for count in scene.label_counts().values() if count >= SplitConfig.min_class]
    least, most = _TRAIN_FRACTION
    return min(max(least, round(_TRAIN_PER_CLASS * len(counts) / max(1, sum(counts)), 2)), most)


def machine_rules(folder: RunFolder, values: Mapping[str, Any]) -> Settings:
    """What the machine decides: bfloat16 where it has the instructions for it, as a run had whose pretraining
    has begun.

    Args:
        folder: The run folder, which may not exist yet.
        values: What the user set; the reference arithmetic of features is always float32.
    """
    sections = ("pretrain", "features")
    if all("precision" in (values.get(section) or {}) for section in sections):
        return {}  # nothing to ask a cluster for
    if folder.run.exists() and "pretrain" in folder.records():
        begun = read_json(folder.run)["config"]
        pretrain, features = (begun[section]["precision"] for section in sections)
    else:
        pretrain = features = "bfloat16" if _has_bfloat16(folder.path, values) else "float32"
    if (values.get("features") or {}).get("arithmetic") == "reference":
        features = "float32"
    return {"pretrain": {"precision": pretrain}, "features": {"precision": features}}


class Settled(NamedTuple):
    """A run's configuration, and what of it the rules chose."""

    config: Config
    chosen: dict[str, Any]
    """``section.key`` -> value; empty where the user set all that the rules know."""

    def note(self, scene: Scene) -> str:
        """One line that says it."""
        chosen = ", ".join(f"{key}={value}" for key, value in self.chosen.items())
        size = f"{scene.bands} bands and {scene.height} x {scene.width} pixels"
        return f"chosen by rule for this scene of {size}: {chosen}"


def settle(scene: Scene, folder: RunFolder, path: str | Path | None, overrides: Sequence[str]) -> Settled:
    """The configuration of a run: what the user set, and the rules for the rest.

    Raises:
        UserError: As ``load_config``.
    """
    given = read_values(path, overrides)
    rules = merged(scene_rules(scene), machine_rules(folder, given))
    if (given.get("split") or {}).get("train_per_class"):
        del rules["split"]
    config = make_config(merged(rules, given), path)
    chosen = {
        f"{section}.{key}": value
        for section, values in rules.items()
        for key, value in values.items()
        if key not in (given.get(section) or {})
    }
    return Settled(config, chosen)


def _has_bfloat16(folder: Path, values: Mapping[str, Any]) -> bool:
    """Whether what will compute has products in bfloat16; GPUs of a cluster are taken to have them."""
    if (values.get("cluster") or {}).get("gpu") is not False:
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        if joins_cluster() and machine_at_hand(folder).gpus:
            return True
    return processor_has_bfloat16()


def processor_has_bfloat16() -> bool:
    """Whether this machine's processor has instructions for products in bfloat16, which else take longer."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
