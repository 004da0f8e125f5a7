"""What lies in a run folder: names, JSON files, stage records and the markers of finished units.

A unit (a tile, a group of pixels) is done when its marker stands; the marker is written last. A stage
is done when ``stages.json`` says so, under the fingerprint of all that its result depends on.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import STAGE_SECTIONS
from pipeline.errors import UserError

STAGES = tuple(STAGE_SECTIONS)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run; nothing is created before ``begin``."""

    path: Path

    reduced = property(lambda self: self.path / "reduced.zarr")
    spectral = property(lambda self: self.path / "spectral.json")
    pretrain = property(lambda self: self.path / "pretrain")
    unet = property(lambda self: self.path / "pretrain" / "unet.safetensors")
    features = property(lambda self: self.path / "features.zarr")
    classifier = property(lambda self: self.path / "classifier")
    selection = property(lambda self: self.path / "classifier" / "selection.json")
    map = property(lambda self: self.path / "map.zarr")
    metrics = property(lambda self: self.path / "metrics.json")
    run = property(lambda self: self.path / "run.json")
    stages = property(lambda self: self.path / "stages.json")

    def member(self, index: int) -> Path:
        """Weights of one member of the ensemble."""
        return self.classifier / f"member_{index}.safetensors"

    def records(self) -> dict[str, Any]:
        """``stages.json``; empty before the first stage."""
        return dict(read_json(self.stages)) if self.stages.exists() else {}

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage was finished with these settings and inputs."""
        record = self.records().get(stage, {})
        return bool(record.get("status") == "done" and record.get("fingerprint") == fingerprint)

    def begin(self, stage: str, fingerprint: str) -> None:
        """Mark a stage as running; what an interrupted run with the same fingerprint left is kept."""
        records = self.records()
        if records.get(stage, {}).get("fingerprint") != fingerprint:
            self.forget(stage)
        kept = {name: records[name] for name in STAGES if name in records and _before(name, stage)}
        old = records.get(stage, {})
        seconds = old.get("wall_s", 0.0) if old.get("fingerprint") == fingerprint else 0.0
        kept[stage] = {"status": "running", "fingerprint": fingerprint, "wall_s": seconds}
        write_json(self.stages, kept)

    def finish(self, stage: str, **measured: float) -> None:
        """Mark a stage as done and store what was measured; time adds up over interruptions."""
        records = self.records()
        record = records[stage] | measured
        record["wall_s"] = round(records[stage]["wall_s"] + measured["wall_s"], 3)
        record["pixels_per_s"] = round(record["pixels"] / max(record["wall_s"], 1e-9), 1)
        records[stage] = record | {"status": "done", "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(self.stages, records)

    def forget(self, stage: str) -> None:
        """Delete what a stage has written."""
        owned = {
            "reduce": (self.reduced, self.spectral),
            "pretrain": (self.pretrain,),
            "extract": (self.features, self.selection),
            "classify": (*self.classifier.glob("member_*"), self.classifier / "history.json", self.metrics),
            "map": (self.map, self.path / "map.tif", self.path / "map.tif.aux.xml", self.path / "confidence.tif", self.path / "map_preview.png"),
            "report": (self.path / "report.html",),
        }  # fmt: skip
        for path in (*owned[stage], self.markers(stage)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def markers(self, stage: str) -> Path:
        """Folder of the markers of a stage's finished units."""
        return Path(self.path / ".done" / stage)

    def done_units(self, stage: str) -> set[int]:
        """Units of a stage that are finished."""
        folder = self.markers(stage)
        return {int(name) for name in os.listdir(folder)} if folder.exists() else set()

    def todo(self, stage: str, units: Iterable[int]) -> list[int]:
        """Units of a stage that are not finished."""
        done = self.done_units(stage)
        self.markers(stage).mkdir(parents=True, exist_ok=True)
        return [unit for unit in units if unit not in done]

    def check_belongs(self, scene_fingerprint: str) -> None:
        """Refuse a folder of another scene, or one that holds something else.

        Raises:
            UserError: The folder is not empty and no run, or the run's scene differs.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not self.run.exists():
            if {entry.name for entry in self.path.iterdir()} <= {"scene.zarr"}:
                return
            raise UserError(f"--out {self.path}: expected a new folder or a run, found other files")
        found = read_json(self.run)["scene"]
        if found["fingerprint"] != scene_fingerprint:
            raise UserError(
                f"--out {self.path}: holds a run of another scene ({found['url']}); choose another --out"
            )


def _before(stage: str, other: str) -> bool:
    return STAGES.index(stage) < STAGES.index(other)
