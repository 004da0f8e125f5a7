"""What each choice of the method gives: the defaults with one thing changed, on the same splits.

``python -m benchmarks.ablation --scene SCENE --out DIR [--seeds 0,1,2,3,4] [--protocols random,blocks]
[--changes NAME,...]``. Uses the pretrained run in DIR/base, which ``benchmarks.accuracy`` makes too; a change
of reduction or pretraining has a run of its own. Nothing is calibrated here but in the row that says so: the
temperature costs as many trainings again and decides hardly a class. Leaves DIR/ablation.md and
DIR/ablation.json; the same command resumes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click

from benchmarks.accuracy import Draw, score, score_key
from benchmarks.accuracy_table import OURS, publish, table_of
from benchmarks.comparison import (
    comparing,
    overrides_of,
    pipeline_command,
    pipeline_until,
    protocol_names,
    seed_numbers,
)
from benchmarks.labelled import Labelled
from benchmarks.learn import Learner
from benchmarks.record import about
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.defaults import settle
from pipeline.errors import UserError, run_command
from pipeline.scene import Scene, open_scene

CHANGES = {
    OURS: [],
    "calibrated": ["classifier.calibrate=true"],
    "one member": ["classifier.members=1"],
    "no experts": ["classifier.experts=[]"],
    "the expert of features alone": ["classifier.experts=[features]"],
    "the expert of spectra alone": ["classifier.experts=[spectra]"],
    "majority vote (no experts)": ["classifier.vote=majority"],
    "all channels": ["purify.keep=1.0"],
    "a fifth of the channels": ["purify.keep=0.2"],
    "t = 50 alone": ["features.timesteps=[50]"],
    "t = 300 alone": ["features.timesteps=[300]"],
    "t = 700 alone": ["features.timesteps=[700]"],
    "stage 5 alone": ["features.stages=[5]"],
    "five stages": ["features.stages=[0,1,2,3,5]"],
    "no spectra (nor their expert)": ["features.spectra=[]"],
    "no profiles": ["features.profiles=[]"],
    "raw features": ["classifier.standardise=false"],
    "no dropout": ["classifier.dropout=0"],
    "no weight decay": ["classifier.weight_decay=0"],
    "no label smoothing": ["classifier.label_smoothing=0"],
    "half the epochs": ["classifier.epochs=50"],
    "twice the epochs": ["classifier.epochs=200"],
    "untrained U-Net": ["pretrain.steps=1"],
}
"""Name in the table -> settings beside the defaults."""
_UNCALIBRATED = "classifier.calibrate=false"
_PRETRAINED = ("reduce", "patches.size", "unet", "diffusion", "pretrain")


@click.command()
@comparing
@click.option("--changes", "change_list", help="Some of the changes, by name; all when absent.")
def main(
    url: str,
    config_file: str | None,
    out: str,
    seed_list: str,
    protocol_list: str,
    change_list: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Score the defaults with one thing changed, on the same splits of one scene."""
    seeds, protocols, changes = seed_numbers(seed_list), protocol_names(protocol_list), names_of(change_list)
    for protocol in protocols:
        load_config(config_file, overrides_of(overrides, protocol))
    scene = open_scene(url)
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = pipeline_command(url, config_file)
    kept = Kept(folder / "ablation_scores.json", scene)
    runs: dict[str, list[dict[str, Any]]] = {protocol: [] for protocol in protocols}
    for change in changes:
        base = _base(command, folder, change, overrides)
        for protocol in protocols:
            for seed in seeds:
                extra = [_UNCALIBRATED, *CHANGES[change], f"split.seed={seed}"]
                config = settle(scene, base, config_file, [*overrides_of(overrides, protocol), *extra]).config
                _add(runs[protocol], seed, change, kept(f"{change}: {protocol}, seed {seed}", config, base))
    tables = {protocol: table_of(rows) for protocol, rows in runs.items()}
    about_it = about() | {"scene": {"name": Path(scene.url).stem}, "calibrated": False, "protocols": tables}
    publish("ablation", about_it, folder)


class Kept:
    """Scores of splits, in a file under what they depend on."""

    def __init__(self, path: Path, scene: Scene) -> None:
        self._path, self._scene = path, scene
        self._found: dict[str, Any] = read_json(path) if path.exists() else {}

    def __call__(self, name: str, config: Config, base: RunFolder) -> dict[str, Any]:
        """Facts and scores of the configuration's split; made where they are not yet known."""
        key = score_key(config, base, str(self._scene.label_fingerprint()))
        if key not in self._found:
            print(name, file=sys.stderr, flush=True)
            draw = Draw.of(config, Labelled.read(base, self._scene, config), None)
            scored = score(Learner(base.path, config), draw.features, draw)
            self._found[key] = draw.facts(config) | scored | {"commit": about()["commit"]}
            write_json(self._path, self._found)
        return cast(dict[str, Any], self._found[key])


def names_of(text: str | None) -> list[str]:
    """Names of ``CHANGES`` from a list with commas, the defaults first; all without a list."""
    parts = [part.strip() for part in text.split(",")] if text else list(CHANGES)
    if unknown := [part for part in parts if part not in CHANGES]:
        raise UserError(f"--changes {unknown[0]}: expected some of {', '.join(CHANGES)}")
    return [OURS, *(part for part in CHANGES if part in parts and part != OURS)]


def _base(command: list[str], folder: Path, change: str, overrides: Sequence[str]) -> RunFolder:
    """The pretrained run that the change reads."""
    settings = [setting for setting in CHANGES[change] if setting.startswith(_PRETRAINED)]
    base = RunFolder(folder / ("base_" + change.lower().replace(" ", "_") if settings else "base"))
    pipeline_until(command, base, [*overrides_of(overrides, None), *settings], "pretrain")
    return base


def _add(runs: list[dict[str, Any]], seed: int, change: str, scored: dict[str, Any]) -> None:
    """Put a change's scores beside those of the others on the same split."""
    own = [run for run in runs if run["seed"] == seed]
    if not own:
        facts = ("split", "n_train", "n_test", "overlap", "test_pixels")
        own = [{"seed": seed, "methods": {}} | {name: scored[name] for name in facts}]
        runs.extend(own)
    if own[0]["test_pixels"] != scored["test_pixels"]:
        raise RuntimeError(f"{change}, seed {seed}: scored on other test pixels than the defaults")
    own[0]["methods"][change] = scored


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "ablation", arguments)


if __name__ == "__main__":
    sys.exit(cli())
