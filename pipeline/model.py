"""Trained parts of an earlier run, used on another scene: ``--model RUN_DIR``."""

import filecmp
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmsd.bands import TOLERANCE_NM, BandMap, band_spacing, in_order, match_bands
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.scene import Scene

MODEL_STAGES = ("reduce", "map", "report")
"""What remains to be done with trained parts."""

FloatArray = NDArray[np.float64]

_SETTABLE = ("map", "supertokens", "polygons", "cluster")
_PARTS = ("spectral.json", "classifier/selection.json")
_SAME_UNITS = 10**1.5  # mean reflectance may differ so much between scenes in the same units
_UNITS = (1e-4, 1e-3, 1e-2, 1e2, 1e3, 1e4)  # counts, per mille and percent, either way


@dataclass(frozen=True)
class Match:
    """How a scene's values become those that a model was trained on, and what that assumes."""

    bands: BandMap
    assumed: dict[str, Any]
    """For ``run.json``; ``notes`` are sentences for the terminal."""


def model_config(model: Path, config_file: str | None, overrides: Sequence[str]) -> Config:
    """The model's own configuration; only what concerns the map and the cluster may be set anew.

    Raises:
        UserError: The folder is no finished model, or a setting of what was trained differs.
    """
    _check_parts(model, (*_PARTS, "run.json"))
    folder = RunFolder(model)
    own = folder.config()
    needed = [folder.member(index) for index in range(own.classifier.members)]
    needed += [folder.expert(name) for name in own.experts]
    needed += [folder.calibration] if own.classifier.calibrate else []
    needed += [folder.mixing] if own.fusion.keep_timesteps is not None else []
    needed += [folder.unet] if own.reads_features else []
    _check_parts(model, [str(path.relative_to(model)) for path in needed])
    asked = load_config(config_file, overrides, own)
    if asked.supertokens.steps:
        raise UserError(
            f"--model {model}: expected supertokens.steps=0, found {asked.supertokens.steps}: a classifier "
            "of tokens learns from training pixels of its scene, of which there are none; with 0 tokens vote"
        )
    _check_unchanged(model, own.model_dump(mode="json"), asked.model_dump(mode="json"))
    return asked


def _check_unchanged(model: Path, own: dict[str, Any], asked: dict[str, Any]) -> None:
    settable = ", ".join(f"{section}.*" for section in _SETTABLE)
    for section, values in asked.items():
        if section in _SETTABLE or values == own[section]:
            continue
        key, found, there = section, values, own[section]
        if isinstance(values, dict):
            last = next(name for name, value in values.items() if value != there[name])
            key, found, there = f"{section}.{last}", values[last], there[last]
        raise UserError(
            f"--model {model}: was made with {key}={there}, found {key}={found}; with --model only "
            f"{settable} can be set"
        )


def model_fingerprint(model: Path) -> str:
    """Hash of all trained parts."""
    digest = hashlib.sha256()
    for path in _files(model):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_model(model: Path, scene: Scene) -> None:
    """Refuse a scene from which the model's bands cannot be made.

    Raises:
        UserError: As ``match_scene``.
    """
    match_scene(model, scene)


def match_scene(model: Path, scene: Scene) -> Match:
    """Bands by wavelength (or in order, where one side states none), units by the mean reflectance.

    Reads at most 16 windows of 32 x 32 pixels of the scene.

    Raises:
        UserError: A band of the model cannot be made from the scene's, or the scene's values are far
            from any usual unit of the model's.
    """
    spectral = read_json(model / "spectral.json")
    mean_S = scene.sampled_mean()
    usable = np.isfinite(mean_S)
    bands, notes = _match_wavelengths(model, spectral, scene, usable)
    scale, level = 1.0, None
    if usable.any():
        found = bands.apply(mean_S.astype(np.float32).reshape(-1, 1, 1)).ravel()
        scale, level, note = _match_units(model, np.asarray(spectral["mean"]), found, scene)
        notes += note
    bands = replace(bands, scale=scale)
    empty = np.flatnonzero(~usable).tolist() if usable.any() else []
    unused = sorted(set(range(scene.bands)) - set(bands.used) - set(empty))
    if empty:
        notes.append(
            f"bands of the scene without data where it was sampled, not used: {', '.join(map(str, empty))}"
        )
    return Match(
        bands,
        {
            "bands": bands.counts(), "bands_without_data": empty, "bands_not_used": unused,
            "scale": scale, "level": level, "notes": notes,
        },
    )  # fmt: skip


def adopt_model(model: Path, folder: RunFolder, scene: Scene) -> None:
    """Copy the trained parts into the run folder, so that it stands alone.

    ``spectral.json`` also gets ``from_scene``, which makes the model's bands from the scene's, and
    ``run.json`` gets ``assumed``.
    """
    match = match_scene(model, scene)
    for path in _files(model):
        target = folder.path / str(path.relative_to(model))
        if path.name == folder.spectral.name:
            continue
        with storage.local_copy(path) as source:
            if target.exists():
                with storage.local_copy(target) as there:
                    if filecmp.cmp(source, there, shallow=False):
                        continue
            storage.make_folder(target.parent, parents=True)
            with storage.whole(target) as file:
                shutil.copyfile(source, file)
    spectral = read_json(model / "spectral.json") | {"from_scene": match.bands.as_json()}
    if not folder.spectral.exists() or read_json(folder.spectral) != spectral:
        write_json(folder.spectral, spectral)
    write_json(folder.run, read_json(folder.run) | {"assumed": match.assumed})


def _match_wavelengths(
    model: Path, spectral: dict[str, Any], scene: Scene, usable: NDArray[np.bool_]
) -> tuple[BandMap, list[str]]:
    """The model's used bands from the scene's, and what to say about it."""
    used = spectral["bands_used"]
    if not (spectral["wavelength_nm"] and scene.wavelength_nm):
        if spectral["bands"] != scene.bands:
            raise UserError(
                f"--model {model}: expects {spectral['bands']} bands, {scene.url} has {scene.bands}; give "
                "both the wavelengths of their bands (ingest.py --wavelengths) to match them"
            )
        without = [band for band in used if usable.any() and not usable[band]]
        if without:
            raise UserError(
                f"--model {model}: needs bands {without} of {scene.url}, which hold no data there; give both "
                "the wavelengths of their bands (ingest.py --wavelengths) to make them from their neighbours"
            )
        return in_order(used), ["wavelengths unknown: the bands are taken in their order"]
    wanted, there = (np.asarray(nm, np.float64) for nm in (spectral["wavelength_nm"], scene.wavelength_nm))
    widths = band_spacing(wanted)[used]
    known = np.isfinite(there) & (usable if usable.any() else True)
    try:
        bands = match_bands(wanted[used], there, fwhm_nm=widths, usable=known)
    except ValueError as error:
        raise UserError(
            f"--model {model}: cannot make its bands from those of {scene.url}: {error}"
        ) from None
    if set(bands.how) == {"nearest"}:
        apart = max(abs(wanted[u] - there[w[0][0]]) for u, w in zip(used, bands.weights, strict=True))
        identity = bands.weights == in_order(used).weights
        note = f"bands matched by wavelength, at most {apart:.2g} nm apart (allowed: {TOLERANCE_NM:g} nm)"
        return bands, [] if identity and apart == 0 else [note]
    made = " and ".join(f"{count} {_HOW[how]}" for how, count in bands.counts().items())
    return bands, [f"another sensor: the model's {len(used)} bands are resampled, {made}"]


_HOW = {
    "gaussian": "by a Gaussian response as wide as the spacing of the model's bands",
    "linear": "by linear interpolation",
}


def _match_units(
    model: Path, mean_M: FloatArray, found_M: NDArray[np.float32], scene: Scene
) -> tuple[float, float | None, list[str]]:
    """Factor to the model's units, mean reflectance over the model's after it, and what to say.

    Scenes differ in brightness; units differ by powers of ten. A level that neither explains is refused.
    """
    valid = np.isfinite(found_M)
    ours, theirs = float(found_M[valid].sum()), float(mean_M[valid].sum())
    if not (ours > 0 and theirs > 0):
        return 1.0, None, []
    level = ours / theirs
    if 1 / _SAME_UNITS <= level <= _SAME_UNITS:
        return 1.0, level, []
    scale = min(_UNITS, key=lambda unit: abs(np.log10(unit * level)))
    if not 1 / _SAME_UNITS <= scale * level <= _SAME_UNITS:
        raise UserError(
            f"--model {model}: the mean value of {scene.url} is {level:.3g} times that of the model's own "
            "scene, which no usual unit explains; make the scene with ingest.py --scale-factor"
        )
    note = f"values are multiplied by {scale:g}: their mean is {level:.3g} times that of the model's scene"
    return scale, scale * level, [note]


def _check_parts(model: Path, parts: Sequence[str]) -> None:
    if not model.exists():
        raise UserError(f"--model {model}: no such run folder")
    missing = [part for part in parts if not (model / part).exists()]
    if missing:
        raise UserError(
            f"--model {model}: expected a run that has finished classify, {missing[0]} is missing"
        )


def _files(model: Path) -> list[Path]:
    return [
        model / "spectral.json",
        *(model / "pretrain").glob("unet.safetensors"),
        model / "classifier" / "selection.json",
        *sorted((model / "classifier").glob("member_*.safetensors")),
        *sorted((model / "classifier").glob("expert_*.safetensors")),
        *(model / "classifier").glob("calibration.json"),
        *(model / "classifier").glob("mixing.json"),
    ]
