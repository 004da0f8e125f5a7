"""Accuracy of the pipeline beside classical peers, on identical pixels, over seeds and protocols.

``python -m benchmarks.accuracy --scene SCENE --config FILE --out DIR --seeds 0,1,2``. Reduction and
pretraining see no labels and run once, as the pipeline in DIR/base; so do the features of all labelled
pixels. Every split then trains and scores all methods, and leaves DIR/<protocol>_seed<n>.json. The same
command resumes.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from benchmarks import peers, ssftt
from benchmarks.accuracy_table import OURS, markdown, shared_tests, summarise
from benchmarks.labelled import SHARED, Labelled
from benchmarks.learn import Kinds, Learner
from benchmarks.record import about
from mtmsd.split import TEST, TRAIN, UNUSED, overlap
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.defaults import settle
from pipeline.errors import UserError, run_command
from pipeline.fingerprints import fingerprints
from pipeline.scene import Scene, open_scene

PROTOCOLS = {
    "random": ["split.protocol=random"],
    **{f"few{n}": ["split.protocol=random", f"split.train_per_class={n}"] for n in (5, 10, 30)},
    "blocks": ["split.protocol=blocks"],
    **{f"guard{px}": ["split.protocol=blocks", f"split.guard_px={px}"] for px in (12, 24)},
}
"""Name -> settings: shares of each class as configured; few labels; blocks, with a guard distance."""
_ROOT = Path(__file__).resolve().parent.parent


def comparing(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a comparison: the scene, its configuration, folder and splits."""
    for option in reversed((
        click.option("--scene", "url", required=True, metavar="SCENE", help="Zarr group with labels."),
        click.option("--config", "config_file", metavar="FILE", help="YAML configuration; see configs/."),
        click.option("--out", required=True, metavar="DIR", help="Folder of the runs and the tables."),
        click.option("--seeds", "seed_list", default="0,1,2", show_default=True, help="Seeds of the split."),
        click.option("--protocols", "protocol_list", default="random,blocks", show_default=True),
        click.option(
            "--set", "overrides", metavar="[PROTOCOL:]KEY=VALUE", multiple=True,
            help="Override for all runs, or for one protocol: blocks:split.train_per_class=30.",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


@click.command()
@comparing
def main(
    url: str,
    config_file: str | None,
    out: str,
    seed_list: str,
    protocol_list: str,
    overrides: tuple[str, ...],
) -> None:
    """Compare the pipeline with its peers on the same training and test pixels."""
    seeds, protocols = seed_numbers(seed_list), protocol_names(protocol_list)
    for protocol in protocols:
        load_config(config_file, overrides_of(overrides, protocol))
    scene = open_scene(url)
    if scene.classes is None:
        raise UserError(f"scene {scene.url}: expected labels, found none; accuracy needs them")
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [url, *(["--config", config_file] if config_file else [])]
    base = RunFolder(folder / "base")
    pipeline_until(command, base, overrides_of(overrides, None), "pretrain")
    records = base.records()
    report: dict[str, Any] = about() | {
        "scene": {"name": Path(scene.url).stem} | read_json(base.run)["scene"],
        "config": read_json(base.run)["config"],
        "shared": {"seconds": records["reduce"]["wall_s"] + records["pretrain"]["wall_s"]},
        "protocols": {},
    }
    images = _images(scene, base)
    labelled = Labelled.read(base, scene)
    report["shared"]["seconds"] += labelled.seconds
    for protocol in protocols:
        runs = []
        for seed in seeds:
            chosen = [*overrides_of(overrides, protocol), f"split.seed={seed}"]
            config = settle(scene, base, config_file, chosen).config
            print(f"{protocol}, seed {seed}:", file=sys.stderr, flush=True)
            cache = folder / f"{protocol}_seed{seed}.json"
            runs.append({"seed": seed} | measure(config, base, labelled, images, cache))
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


def seed_numbers(text: str) -> list[int]:
    """Seeds from a list such as 0,1,2."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--seeds {text}: expected distinct integers from 0 such as 0,1,2")
    return [int(part) for part in parts]


def protocol_names(text: str) -> list[str]:
    """Names of ``PROTOCOLS`` from a list with commas."""
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(PROTOCOLS) or len(set(parts)) < len(parts):
        raise UserError(f"--protocols {text}: expected some of {', '.join(PROTOCOLS)}, each once")
    return parts


def overrides_of(overrides: Sequence[str], protocol: str | None) -> list[str]:
    """``--set`` values that apply to a protocol's runs; None stands for the shared base.

    Raises:
        UserError: A prefix names no protocol, or the key is one that this command decides.
    """
    chosen = [] if protocol is None else list(PROTOCOLS[protocol])
    for override in overrides:
        prefix, colon, rest = override.partition("=")[0].partition(":")
        if colon and prefix not in PROTOCOLS:
            raise UserError(
                f"--set {override}: expected a protocol ({', '.join(PROTOCOLS)}) before the colon"
            )
        key = (rest if colon else prefix).strip()
        if colon and key.split(".")[0] in (*SHARED, "reduce", "unet", "diffusion", "pretrain"):
            raise UserError(f"--set {override}: {key} is shared by all protocols; leave {prefix}: out")
        if key in ("split.protocol", "split.seed"):
            raise UserError(f"--set {override}: {key} is decided by --protocols and --seeds")
        if not colon or prefix == protocol:
            chosen.append(override[len(prefix) + 1 :] if colon else override)
    return chosen


def pipeline_until(command: list[str], run: RunFolder, overrides: list[str], until: str) -> None:
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


def measure(
    config: Config, base: RunFolder, labelled: Labelled, images: Images, cache: Path
) -> dict[str, Any]:
    """Scores of all methods on one split; kept in ``cache``."""
    key = _key(config, base)
    if cache.exists():
        stored = read_json(cache)
        if stored["key"] == key:
            return {name: value for name, value in stored.items() if name != "key"}
    seed = config.seed if config.split.seed is None else config.split.seed
    split = labelled.split(config.split, seed)
    used = np.flatnonzero(split != UNUSED)
    pixels = peers.Pixels(*(values[used] for values in (labelled.y, labelled.x, labelled.label, split)))
    features = tuple(kind[torch.from_numpy(used)] for kind in labelled.features)
    begun = time.monotonic()
    codes, position = np.unique(pixels.label, return_inverse=True)
    learnt = Learner(base.path, config).learn(cast(Kinds, features), position, pixels.split)
    ours = {key: learnt.confusion.finish()[key] for key in ("oa", "aa", "kappa", "per_class")}
    seconds = time.monotonic() - begun
    purified = features[0][..., list(learnt.selection.centre)].numpy()
    before, after = config.patches.side // 2, config.patches.side - config.patches.side // 2 - 1
    test = pixels.split == TEST
    where = np.sort(pixels.y[test] * (1 << 32) + pixels.x[test])
    protocol = config.model_dump(mode="json")["split"]
    if protocol["train_per_class"] is None:
        del protocol["train_per_class"]
    found = {
        "split": protocol, "codes": codes.tolist(),
        "n_train": int((pixels.split == TRAIN).sum()), "n_test": int(test.sum()),
        "overlap": overlap(pixels.y, pixels.x, pixels.split, before, after),
        "ece": learnt.reliability.error(), "reliability": learnt.reliability.rows(),
        "test_pixels": hashlib.sha256(where.tobytes()).hexdigest(),
        "methods": {OURS: ours | {"seconds": seconds}} | _score_peers(purified, pixels, images),
    }  # fmt: skip
    write_json(cache, {"key": key} | found)
    return found


def _key(config: Config, base: RunFolder) -> str:
    """What the scores depend on: settings, the U-Net, and the code of the peers."""
    digest = hashlib.sha256(json.dumps(fingerprints(config, {}), sort_keys=True).encode())
    for path in (base.unet, Path(peers.__file__), Path(ssftt.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
    for name, method in ((peers.FOREST, _forest), (peers.TRANSFORMER, peers.transformer)):
        print(f"  {name}", file=sys.stderr, flush=True)
        results[name] = method(cube_BHW, pixels)
    return results


def _forest(cube_BHW: NDArray[np.float32], pixels: peers.Pixels) -> dict[str, Any]:
    return peers.forest(peers.spectra(cube_BHW, pixels), pixels)


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "accuracy", arguments)


if __name__ == "__main__":
    sys.exit(cli())
