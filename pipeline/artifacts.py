"""What lies in a run folder: names, JSON files, stage records and the markers of finished units.

A unit (a tile, a group of pixels) is done when its marker stands; the marker is written last. A stage
is done when ``stages.json`` says so, under the fingerprint of all that its result depends on.
"""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Config, make_config
from pipeline.errors import UserError
from pipeline.fingerprints import STAGE_SECTIONS

STAGES = tuple(STAGE_SECTIONS)

_MAP_FILES = ("map.tif", "map.tif.aux.xml", "confidence.tif", "map_preview.png")

_PATHS = {
    "run": "run.json",
    "stages": "stages.json",
    "reduced": "reduced.zarr",
    "spectral": "spectral.json",
    "pretrain": "pretrain",
    "unet": "pretrain/unet.safetensors",
    "features": "features.zarr",
    "classifier": "classifier",
    "selection": "classifier/selection.json",
    "calibration": "classifier/calibration.json",
    "mixing": "classifier/mixing.json",
    "map": "map.zarr",
    "tokens": "map_tokens.safetensors",
    "metrics": "metrics.json",
}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with storage.whole(path) as file:
        file.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        UserError: It is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path}: damaged, expected JSON, found {error}; restore it from a copy, or choose another --out"
        ) from None


_MAP_SCORES = ("map_oa", "map_ece", "map_oa_pixel", "map_confusion")
_REPORT_FILES = ("areas.json", "map.gpkg", "stac.json", "report.html")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run; nothing is created before ``begin``."""

    path: Path

    def __post_init__(self) -> None:
        """Derive every path from the folder's."""
        for name, relative in _PATHS.items():
            object.__setattr__(self, name, self.path / relative)

    run: Path = field(init=False)
    """The resolved configuration, versions, scene and command."""
    stages: Path = field(init=False)
    """Status and measurements of each stage."""
    reduced: Path = field(init=False)
    """The reduced cube."""
    spectral: Path = field(init=False)
    """The fitted projection."""
    pretrain: Path = field(init=False)
    """Checkpoints of the diffusion model."""
    unet: Path = field(init=False)
    """The U-Net in use."""
    features: Path = field(init=False)
    """Purified features of labelled pixels."""
    classifier: Path = field(init=False)
    """The members of the ensemble."""
    selection: Path = field(init=False)
    """The channels that purification keeps, and the classes."""
    calibration: Path = field(init=False)
    """The temperature of the ensemble's logits."""
    mixing: Path = field(init=False)
    """The timesteps that a fusion's mixing weights leave."""
    map: Path = field(init=False)
    """Class, confidence and entropy of every pixel."""
    tokens: Path = field(init=False)
    """The classifier of supertokens."""
    metrics: Path = field(init=False)
    """Accuracy on the test pixels."""

    def member(self, index: int) -> Path:
        """Weights of one member of the ensemble."""
        return self.classifier / f"member_{index}.safetensors"

    def held_out(self, trainee: int | str) -> Path:
        """What a member's twin, or an expert, says of training pixels that it was not given."""
        return self.classifier / f"held_out_{trainee}.safetensors"

    def expert(self, name: str) -> Path:
        """Weights of an expert."""
        return self.classifier / f"expert_{name}.safetensors"

    def config(self) -> Config:
        """The run's configuration; a setting that came later has the value that stands for its absence.

        Raises:
            UserError: ``run.json`` is damaged, or another version wrote it.
        """
        values = read_json(self.run)["config"]
        values["features"].setdefault("profiles", [])
        values["classifier"].setdefault("experts", [])
        values["classifier"].setdefault("steps", None)
        return make_config(values, self.run)

    def records(self) -> dict[str, Any]:
        """``stages.json``; empty before the first stage."""
        return dict(read_json(self.stages)) if self.stages.exists() else {}

    def begun_from(self) -> str | None:
        """The ``--from`` of a command that has not come to its end."""
        found: str | None = read_json(self.run).get("from") if self.run.exists() else None
        return found

    def begin(self, stage: str, fingerprint: str) -> None:
        """Mark a stage as running; what an interrupted run with the same fingerprint left is kept."""
        records = self.records()
        if records.get(stage, {}).get("fingerprint") != fingerprint:
            self.forget(stage)
        self.sweep(stage)
        kept = {name: records[name] for name in STAGES if name in records and _before(name, stage)}
        kept[stage] = {"status": "running", "fingerprint": fingerprint}
        write_json(self.stages, kept)

    def finish(self, stage: str, **measured: float) -> None:
        """Mark a stage as done and store what was measured; after an interruption, since the last start."""
        records = self.records()
        record = records[stage] | measured
        record["wall_s"] = round(measured["wall_s"], 3)
        record["pixels_per_s"] = round(record["pixels"] / max(record["wall_s"], 1e-9), 1)
        records[stage] = record | {
            "status": "done",
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(self.stages, records)

    def forget(self, stage: str) -> None:
        """Delete what a stage has written, its record first: a stage that is half deleted is not done."""
        records = self.records()
        if records.pop(stage, None) is not None:
            write_json(self.stages, records)
        for path in (*self._owned(stage), self.markers(stage)):
            storage.remove(path)
        if stage == "map" and self.metrics.exists():
            with suppress(UserError):  # a damaged one is no reason to keep half a map
                write_json(self.metrics, without_map_scores(read_json(self.metrics)))

    def sweep(self, stage: str) -> None:
        """Delete what a killed run left half written of a stage: its ``.partial`` files and folders."""
        if not storage.is_local(self.path):
            return  # an upload leaves nothing half written
        for path in self._owned(stage):
            strays = [*path.parent.glob(f"{path.stem}*.partial*"), *path.parent.glob(f".{path.stem}.*")]
            strays += path.rglob("*.partial") if path.is_dir() else ()
            for stray in strays:
                storage.remove(stray)

    def _owned(self, stage: str) -> tuple[Path, ...]:
        return {
            "reduce": (self.reduced, self.spectral),
            "pretrain": (self.pretrain,),
            "extract": (self.features, self.selection),
            "classify": (
                *self.classifier.glob("member_*"), *self.classifier.glob("held_out_*"),
                *self.classifier.glob("expert_*"),
                self.classifier / "history.json", self.classifier / "ray_train", self.calibration,
                self.mixing, self.metrics,
            ),
            "map": (self.map, self.tokens, *(self.path / name for name in _MAP_FILES)),
            "report": tuple(self.path / name for name in _REPORT_FILES),
        }[stage]  # fmt: skip

    def markers(self, stage: str) -> Path:
        """Folder of the markers of a stage's finished units."""
        folder: Path = self.path / ".done" / stage
        return folder

    def done_units(self, stage: str) -> set[int]:
        """Units of a stage that are finished."""
        return {int(name) for name in storage.names(self.markers(stage)) if name.isdecimal()}

    def todo(self, stage: str, units: Iterable[int]) -> list[int]:
        """Units of a stage that are not finished."""
        done = self.done_units(stage)
        storage.make_folder(self.markers(stage), parents=True)
        return [unit for unit in units if unit not in done]

    def must_lay_out(self, stage: str, group: Path) -> bool:
        """Whether a stage's arrays are missing; none of its units then counts as finished."""
        if storage.has_group(group):
            return False
        storage.remove(self.markers(stage))
        return True

    def check_belongs(self, scene_fingerprint: str) -> None:
        """Refuse a folder of another scene, or one that holds something else.

        Raises:
            UserError: The folder is not empty and no run, or the run's scene differs.
        """
        if not self.path.exists():
            return
        if not self.run.exists():
            known = ("scene.zarr", ".lock", "run.json.partial")
            if all(name.startswith(known) for name in storage.names(self.path)):
                return  # new, or the demo's scene, perhaps half made
            raise UserError(f"--out {self.path}: expected a new folder or a run, found other files")
        found = read_json(self.run)["scene"]
        if found["fingerprint"] != scene_fingerprint:
            raise UserError(
                f"--out {self.path}: holds a run of another scene ({found['url']}); choose another --out"
            )


def without_map_scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """What ``metrics.json`` says before there is a map."""
    return {key: value for key, value in metrics.items() if key not in _MAP_SCORES}


def _before(stage: str, other: str) -> bool:
    return STAGES.index(stage) < STAGES.index(other)
