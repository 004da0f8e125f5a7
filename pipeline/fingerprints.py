"""What each stage's result depends on, and a hash of it: finished stages are told apart by theirs."""

import hashlib
import json
from typing import Any

from pipeline.config import Config

STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "reduce": ("reduce",),
    "pretrain": ("seed", "patches", "unet", "diffusion", "pretrain"),
    "extract": ("seed", "patches", "features", "split", "purify"),
    "classify": ("seed", "fusion", "classifier"),
    "map": ("patches", "map", "supertokens"),
    "report": ("polygons",),
}
"""The stages in order, and the sections that each one's result depends on (besides earlier stages)."""

_SAID_IF_SET = {
    "unet": ("kind", "cuts", "decoders", "cut_similarity", "cut_tolerance", "cut_window"),
    "fusion": ("kind", "width", "keep_timesteps"),
    "classifier": ("kind", "patch", "patience"),
    "map": ("regions",),
    "supertokens": ("steps",),
    "split": ("untested", "inductive"),
}
"""Settings that enter a fingerprint only where they differ from their default."""

_WITHOUT_EFFECT = {("pretrain", "checkpoint_every"), ("map", "pixels")}


def stage_settings(config: Config, stage: str) -> dict[str, Any]:
    """The settings that the stage's own result depends on."""
    values = config.model_dump(mode="json")
    sections = STAGE_SECTIONS[stage]
    if stage == "reduce" and config.split.inductive:
        sections = (*sections, "seed", "split")
    chosen = {section: values[section] for section in sections}
    for section, key in _WITHOUT_EFFECT & {(s, k) for s in chosen if s != "seed" for k in chosen[s]}:
        del chosen[section][key]
    defaults = Config().model_dump(mode="json")
    for section in _SAID_IF_SET.keys() & chosen.keys():
        for key in _SAID_IF_SET[section]:
            if chosen[section][key] == defaults[section][key]:
                del chosen[section][key]
    if "unet" in chosen and config.unet.kind == "single":  # the others' settings say nothing of it
        chosen["unet"] = {k: v for k, v in chosen["unet"].items() if k not in _SAID_IF_SET["unet"]}
    if stage == "pretrain":
        del chosen["patches"]["stride"], chosen["patches"]["blend"]
        chosen["patches"]["window"] = None  # of maps; the key stands in the fingerprints of earlier versions
        chosen["train_workers"] = config.cluster.train_workers
    if config.map.regions is None:
        chosen.pop("supertokens", None)
    if stage == "pretrain" and not config.reads_features:
        chosen["classifier"] = {"kind": values["classifier"]["kind"]}
    if stage == "classify":  # what says nothing is left out, as it was before there were these settings
        for key, value in (("experts", list(config.experts)), ("steps", config.classifier.steps)):
            chosen["classifier"].pop(key)
            chosen["classifier"] |= {key: value} if value else {}
    if stage == "extract" and config.patch:
        chosen["classifier"] = {key: values["classifier"][key] for key in ("kind", "patch")}
    return chosen


def fingerprints(config: Config, inputs: dict[str, str]) -> dict[str, str]:
    """Per stage, a hash of its settings, its inputs and all earlier stages.

    Args:
        config: The run's configuration.
        inputs: Fingerprints that enter a stage from outside: ``reduce`` (the scene) and
            ``extract`` (its labels, which an inductive split brings to ``reduce``).
    """
    result, chain = {}, ""
    for stage in STAGE_SECTIONS:
        text = json.dumps([chain, stage_settings(config, stage), inputs.get(stage)], sort_keys=True)
        result[stage] = chain = hashlib.sha256(text.encode()).hexdigest()
    return result
