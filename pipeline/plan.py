"""What a command will do: which stages are done, which remain, and whether the folder fits."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import STAGES, RunFolder, read_json
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints, stage_settings
from pipeline.model import MODEL_STAGES, check_model, model_fingerprint
from pipeline.scene import Scene


@dataclass(frozen=True)
class Plan:
    """Stages in order, with what each one's result depends on."""

    scene_fingerprint: str
    fingerprints: dict[str, str]
    done: tuple[str, ...]
    todo: tuple[str, ...]
    forget: tuple[str, ...]
    """Finished stages whose results go: those to be made again, and those that rest on them."""
    model: Path | None

    def table(self) -> str:
        """One line per stage."""
        state = {stage: "done" for stage in self.done} | {stage: "to do" for stage in self.todo}
        state |= {stage: "to do again" if stage in self.todo else "removed" for stage in self.forget}
        return "\n".join(f"{stage:9} {state.get(stage, 'not asked for')}" for stage in STAGES)


def make_plan(
    config: Config,
    folder: RunFolder,
    scene: Scene,
    first: str | None,
    last: str | None,
    model: Path | None,
    chosen: Collection[str] = (),
) -> Plan:
    """Compare what is asked for with what the folder holds; changes nothing.

    Stages from ``first`` on that an interrupted command with the same ``first`` has made again stay.
    ``chosen`` are the settings that rules made.

    Raises:
        UserError: The folder is of another scene or configuration, or a stage before ``first`` is
            missing.
    """
    scene_fingerprint = scene.fingerprint()
    folder.check_belongs(scene_fingerprint)
    if model is not None:
        check_model(model, scene)
        inputs = {"reduce": scene_fingerprint + model_fingerprint(model)}
    else:
        inputs = {"reduce": scene_fingerprint, "extract": scene.label_fingerprint() or "no labels"}
        if config.split.inductive:
            inputs["reduce"] += inputs["extract"]
    prints = fingerprints(config, inputs)
    asked = STAGES if model is None else MODEL_STAGES
    start = STAGES.index(first) if first else len(STAGES)
    end = STAGES.index(last) + 1 if last else len(STAGES)
    records, goes_on = folder.records(), first is not None and folder.begun_from() == first
    done, todo, forget = [], [], []
    for index, stage in enumerate(STAGES):
        record = records.get(stage)
        if stage not in asked:
            continue
        same = record is not None and record["fingerprint"] == prints[stage]
        if record is not None and not same and index < start:
            raise UserError(_changed(config, folder, stage, model, chosen))
        if end <= index < start:
            continue
        if same and record is not None and record["status"] == "done" and (index < start or goes_on):
            done.append(stage)
            continue
        if record is not None and index >= start and not (same and goes_on):
            forget.append(stage)
        if index < end:
            todo.append(stage)
        if first and index < start:
            raise UserError(
                f"--from {first}: stage {stage} is not done in {folder.path}; leave --from out to do it"
            )
    if todo:
        after = STAGES.index(todo[0])
        forget = [s for s in STAGES[after:] if s in forget or (s in records and s not in todo)]
    return Plan(scene_fingerprint, prints, tuple(done), tuple(todo), tuple(forget), model)


def _changed(
    config: Config, folder: RunFolder, stage: str, model: Path | None, chosen: Collection[str]
) -> str:
    """Which setting differs from the run that made the stage; not one that follows from scene or labels."""
    old, about = folder.config(), read_json(folder.run)
    again = f"choose another --out, or --from {stage} to make it and later stages again"
    for earlier in STAGES[: STAGES.index(stage) + 1]:
        settings = [_flat(stage_settings(c, earlier)) for c in (old, config)]
        before, now = (
            _flat(c.model_dump(mode="json")) | own for c, own in zip((old, config), settings, strict=True)
        )
        for key in settings[1] | settings[0]:
            if before[key] != now[key] and not (key in chosen and key in about.get("chosen", {})):
                was, asked = (
                    value if isinstance(value := values[key], str) else json.dumps(value)
                    for values in (before, now)
                )
                return (
                    f"--out {folder.path}: stage {earlier} was made with {key} = {was}, the command asks for "
                    f"{asked}; repeat the settings of the run's command ({about['command']}), {again}"
                )
    made, given = about["model"], str(model) if model else None
    if made != given:
        why = f"with {f'--model {made}' if made else 'no --model'}, the command gives {given or 'none'}"
    else:
        why = "from other labels or another state of the model, or by an earlier version"
    return f"--out {folder.path}: stage {stage} was made {why}; {again}"


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"section": {"key": value}} -> {"section.key": value}."""
    flat: dict[str, Any] = {}
    for section, values in settings.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat
