"""Accuracy of the pipeline beside classical peers, on identical pixels, over seeds and protocols.

``python -m benchmarks.accuracy --scene SCENE --config FILE --out DIR --seeds 0,1,2``. Reduction and
pretraining see no labels and run once, in DIR/base; every split then has its own run folder. The
same command resumes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.accuracy_table import OURS, markdown, shared_tests, summarise
from benchmarks.record import about
from mtmsd.split import TEST
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import load_config
from pipeline.errors import UserError, run_command
from pipeline.scene import Scene, open_scene

PROTOCOLS = ("random", "blocks")
_ROOT = Path(__file__).resolve().parent.parent


@click.command()
@click.option("--scene", "url", required=True, metavar="SCENE", help="Zarr group with labels.")
@click.option("--config", "config_file", metavar="FILE", help="YAML configuration; see configs/.")
@click.option("--out", required=True, metavar="DIR", help="Folder of the runs and the tables.")
@click.option("--seeds", "seed_list", default="0,1,2", show_default=True, help="Seeds of the split.")
@click.option("--protocols", "protocol_list", default="random,blocks", show_default=True)
@click.option(
    "--set", "overrides", metavar="[PROTOCOL:]KEY=VALUE", multiple=True,
    help="Override for all runs, or for one protocol: blocks:split.train_per_class=30.",
)  # fmt: skip
def main(
    url: str,
    config_file: str | None,
    out: str,
    seed_list: str,
    protocol_list: str,
    overrides: tuple[str, ...],
) -> None:
    """Compare the pipeline with support vector machines on the same training and test pixels."""
    seeds, protocols = _seeds(seed_list), _protocols(protocol_list)
    for protocol in protocols:
        load_config(config_file, overrides_of(overrides, protocol))
    scene = open_scene(url)
    if scene.classes is None:
        raise UserError(f"scene {scene.url}: expected labels, found none; accuracy needs them")
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [url, *(["--config", config_file] if config_file else [])]
    base = RunFolder(folder / "base")
    _pipeline(command, base, overrides_of(overrides, None), "pretrain")
    records = base.records()
    report: dict[str, Any] = about() | {
        "scene": {"name": Path(scene.url).stem} | read_json(base.run)["scene"],
        "config": read_json(base.run)["config"],
        "shared": {"seconds": records["reduce"]["wall_s"] + records["pretrain"]["wall_s"]},
        "protocols": {},
    }
    images = _images(scene, base)
    for protocol in protocols:
        runs = []
        for seed in seeds:
            run = adopt(base, folder / f"{protocol}_seed{seed}")
            chosen = [*overrides_of(overrides, protocol), f"split.seed={seed}"]
            _pipeline(command, run, chosen, "classify")
            runs.append({"seed": seed} | measure(run, images))
        report["protocols"][protocol] = {
            "summary": summarise(runs),
            "shared_tests": shared_tests(runs),
            "runs": runs,
        }
    write_json(folder / "accuracy.json", report)
    page = markdown(report)
    (folder / "accuracy.md.partial").write_text(page)
    os.replace(folder / "accuracy.md.partial", folder / "accuracy.md")
    print(page)


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--seeds {text}: expected distinct integers from 0 such as 0,1,2")
    return [int(part) for part in parts]


def _protocols(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(PROTOCOLS) or len(set(parts)) < len(parts):
        raise UserError(f"--protocols {text}: expected {' or '.join(PROTOCOLS)}, or both")
    return parts


def overrides_of(overrides: Sequence[str], protocol: str | None) -> list[str]:
    """``--set`` values that apply to a protocol's runs; None stands for the shared base.

    Raises:
        UserError: A prefix names no protocol, or the key is one that this command decides.
    """
    chosen = [] if protocol is None else [f"split.protocol={protocol}"]
    for override in overrides:
        prefix, colon, rest = override.partition("=")[0].partition(":")
        if colon and prefix not in PROTOCOLS:
            raise UserError(
                f"--set {override}: expected a protocol ({', '.join(PROTOCOLS)}) before the colon"
            )
        key = (rest if colon else prefix).strip()
        if key in ("split.protocol", "split.seed"):
            raise UserError(f"--set {override}: {key} is decided by --protocols and --seeds")
        if not colon or prefix == protocol:
            chosen.append(override[len(prefix) + 1 :] if colon else override)
    return chosen


def adopt(base: RunFolder, path: Path) -> RunFolder:
    """A run folder with the base's finished reduction and pretraining; an existing one stays."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # Checkpoints are large and only serve an unfinished pretraining.
        shutil.copytree(base.path, partial, ignore=shutil.ignore_patterns("step-*.pt"))
        partial.rename(path)
    return RunFolder(path)


def _pipeline(command: list[str], run: RunFolder, overrides: list[str], until: str) -> None:
    """Run the pipeline as a user does; a finished run is only checked against the settings.

    Ends the program with the pipeline's exit code when it fails: its own message stands last.
    """
    print(f"{run.path.name}:", file=sys.stderr, flush=True)
    settings = [part for override in overrides for part in ("--set", override)]
    script = [sys.executable, str(_ROOT / "pipeline" / "run.py")]
    options = ["--out", str(run.path), "--until", until]
    finished = subprocess.run([*script, *command, *options, *settings], stdout=sys.stderr, check=False)
    if finished.returncode:
        sys.exit(finished.returncode if finished.returncode > 0 else 1)


Images = tuple[NDArray[np.float32], NDArray[np.float32], float]


def _array(group: Path, name: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(group, path=name, mode="r")[...])


def _images(scene: Scene, base: RunFolder) -> Images:
    """Spectra (band, y, x), profiles (layer, y, x) and the seconds that the profiles took."""
    cube_BHW = scene.read(0, scene.height, 0, scene.width)
    begun = time.monotonic()
    profiles_DHW = peers.profiles(_array(base.reduced, "reduced"))
    return cube_BHW, profiles_DHW, time.monotonic() - begun


def measure(run: RunFolder, images: Images) -> dict[str, Any]:
    """Our scores and the peers' on the pixels of a finished run; peers are kept in ``peers.json``."""
    names = ("y_index", "x_index", "label", "split")
    pixels = peers.Pixels(*(_array(run.features, name) for name in names))
    metrics, records = read_json(run.metrics), run.records()
    scores = {key: metrics[key] for key in ("oa", "aa", "kappa")} | {
        "per_class": [row["accuracy"] for row in metrics["per_class"]],
        "seconds": records["extract"]["wall_s"] + records["classify"]["wall_s"],
    }
    cache = run.path / "peers.json"
    key = _peers_key(records["extract"]["fingerprint"])
    stored = read_json(cache) if cache.exists() else {}
    if stored.get("key") != key:
        methods = _score_peers(_array(run.features, "centre"), pixels, images)
        stored = {"key": key, "methods": methods}
        write_json(cache, stored)
    test = pixels.split == TEST
    where = np.sort(pixels.y[test] * (1 << 32) + pixels.x[test])
    return {key: metrics[key] for key in ("split", "n_train", "n_test", "overlap")} | {
        "test_pixels": hashlib.sha256(where.tobytes()).hexdigest(),
        "methods": {OURS: scores} | stored["methods"],
    }


def _peers_key(extract: str) -> str:
    """What the peers' scores depend on: pixels and features (the stage's fingerprint), and their code."""
    code = Path(peers.__file__).read_bytes()
    return hashlib.sha256(json.dumps([extract]).encode() + code).hexdigest()


def _score_peers(centre_NTD: NDArray[np.float32], pixels: peers.Pixels, images: Images) -> dict[str, Any]:
    cube_BHW, profiles_DHW, seconds = images
    methods: dict[str, list[tuple[str, peers.FloatArray]]] = {
        peers.SPECTRA: [("", peers.spectra(cube_BHW, pixels))],
        peers.PROFILES: [("", profiles_DHW[:, pixels.y, pixels.x].T)],
        peers.FEATURES: peers.feature_variants(centre_NTD),
    }
    results: dict[str, Any] = {}
    for name, variants in methods.items():
        print(f"  {name}", file=sys.stderr, flush=True)
        results[name] = peers.peer(variants, pixels)
    results[peers.PROFILES]["seconds"] += seconds
    return results


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "accuracy", arguments)


if __name__ == "__main__":
    sys.exit(cli())
