"""Trained parts of an earlier run, used on another scene: ``--model RUN_DIR``."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.scene import Scene

MODEL_STAGES = ("reduce", "map", "report")
"""What remains to be done with trained parts."""

_PARTS = ("spectral.json", "pretrain/unet.safetensors", "classifier/selection.json")
_WAVELENGTH_TOLERANCE_NM = 1.0


def model_config(model: Path, config_file: str | None, overrides: Sequence[str]) -> Config:
    """The model's own configuration; only ``map`` and ``cluster`` may be set anew.

    Raises:
        UserError: The folder is no finished model, or another section is set.
    """
    missing = [part for part in (*_PARTS, "run.json") if not (model / part).exists()]
    if missing:
        raise UserError(
            f"--model {model}: expected a run that has finished classify, {missing[0]} is missing"
        )
    if config_file is not None:
        raise UserError("--config cannot be used with --model: the configuration is the model's")
    for override in overrides:
        if override.split(".")[0].split("=")[0] not in ("map", "cluster"):
            raise UserError(f"--set {override}: with --model only map.* and cluster.* can be set")
    own = Config.model_validate(read_json(model / "run.json")["config"])
    return load_config(None, overrides, own)


def model_fingerprint(model: Path) -> str:
    """Hash of all trained parts."""
    digest = hashlib.sha256()
    for path in _files(model):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_model(model: Path, scene: Scene) -> None:
    """Refuse a scene whose bands are not the model's.

    Raises:
        UserError: Another number of bands, or wavelengths that differ by more than the tolerance.
    """
    spectral = read_json(model / "spectral.json")
    if spectral["bands"] != scene.bands:
        raise UserError(f"--model {model}: expects {spectral['bands']} bands, {scene.url} has {scene.bands}")
    theirs, ours = spectral["wavelength_nm"], scene.wavelength_nm
    if theirs and ours:
        apart = float(np.abs(np.subtract(theirs, ours)).max())
        if apart > _WAVELENGTH_TOLERANCE_NM:
            raise UserError(
                f"--model {model}: wavelengths of {scene.url} differ by up to {apart:.1f} nm, "
                f"at most {_WAVELENGTH_TOLERANCE_NM:g} nm is allowed"
            )


def adopt_model(model: Path, folder: RunFolder) -> None:
    """Copy the trained parts into the run folder, so that it stands alone."""
    for path in _files(model):
        target = folder.path / path.relative_to(model)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _files(model: Path) -> list[Path]:
    return [
        *(model / part for part in _PARTS),
        *sorted((model / "classifier").glob("member_*.safetensors")),
    ]
