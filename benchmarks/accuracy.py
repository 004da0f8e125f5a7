"""Accuracy of the pipeline beside classical peers, on identical pixels, over seeds and protocols.

``python -m benchmarks.accuracy --scene SCENE --config FILE --out DIR --seeds 0,1,2``. Reduction and
pretraining see no labels and run once, as the pipeline in DIR/base; so do the features of all labelled
pixels. Every split then trains and scores all methods, and leaves DIR/<protocol>_seed<n>.json. Splits of the
protocol ``inductive`` hide their test blocks from all this and have a base each. The same command resumes.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from benchmarks import peers, ssftt
from benchmarks.accuracy_table import OURS, publish, table_of
from benchmarks.comparison import (
    INDUCTIVE,
    comparing,
    overrides_of,
    pipeline_command,
    pipeline_until,
    protocol_names,
    seed_numbers,
)
from benchmarks.labelled import Labelled
from benchmarks.learn import Kinds, Learner
from benchmarks.published import FILES, PUBLISHED, as_published
from benchmarks.record import about
from mtmsd import ssftt as network
from mtmsd.split import TEST, TRAIN, UNUSED, block_of
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.defaults import settle
from pipeline.errors import UserError, run_command
from pipeline.fingerprints import fingerprints
from pipeline.labels import overlap_of
from pipeline.scene import Scene, open_scene

METHODS = {
    "published": PUBLISHED, "svm": peers.SPECTRA, "emp": peers.PROFILES, "features": peers.FEATURES,
    "forest": peers.FOREST, "ssftt": peers.TRANSFORMER,
}  # fmt: skip
"""Name on the command line -> in the table."""


@click.command()
@comparing
@click.option("--methods", "method_list", help=f"Some of {', '.join(METHODS)}, beside ours; all when absent.")
def main(
    url: str,
    config_file: str | None,
    out: str,
    seed_list: str,
    protocol_list: str,
    method_list: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Compare the pipeline with its peers on the same training and test pixels."""
    seeds, protocols = seed_numbers(seed_list), protocol_names(protocol_list, shared=False)
    methods = methods_of(method_list)
    for protocol in protocols:
        load_config(config_file, overrides_of(overrides, protocol))
    scene = open_scene(url)
    if scene.classes is None:
        raise UserError(f"scene {scene.url}: expected labels, found none; accuracy needs them")
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepared = _Bases(pipeline_command(url, config_file), folder, scene, methods)
    sharing = set(protocols) != {INDUCTIVE}
    shared = prepared("base", overrides_of(overrides, None)) if sharing else None
    tables: dict[str, Any] = {}
    for protocol in protocols:
        runs = []
        for seed in seeds:
            chosen = [*overrides_of(overrides, protocol), f"split.seed={seed}"]
            own = f"base_{protocol}_seed{seed}"
            base = prepared(own, chosen) if protocol == INDUCTIVE else cast(Base, shared)
            config = settle(scene, base.run, config_file, chosen).config
            print(f"{protocol}, seed {seed}:", file=sys.stderr, flush=True)
            cache = folder / f"{protocol}_seed{seed}.json"
            runs.append({"seed": seed} | measure(config, *base[:3], cache, base.published, methods))
        tables[protocol] = table_of(runs)
    publish("accuracy", about() | prepared.facts | {"protocols": tables}, folder)


def methods_of(text: str | None) -> list[str]:
    """Names in the table of the peers in a list with commas, ours first; of all of them without a list."""
    parts = [part.strip() for part in text.split(",")] if text else list(METHODS)
    if not set(parts) <= set(METHODS):
        raise UserError(f"--methods {text}: expected some of {', '.join(METHODS)}")
    return [OURS, *(METHODS[part] for part in METHODS if part in parts)]


Variants = Callable[[], list[tuple[str, peers.FloatArray]]]
Images = tuple[NDArray[np.float32], NDArray[np.float32], float]


def _array(group: Path, name: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(group, path=name, mode="r")[...])


def _images(scene: Scene, base: RunFolder) -> Images:
    """Spectra (band, y, x), profiles (layer, y, x) and the seconds that the profiles took."""
    cube_BHW = scene.read(0, scene.height, 0, scene.width)
    begun = time.monotonic()
    profiles_DHW = peers.profiles(_array(base.reduced, "reduced"))
    return cube_BHW, profiles_DHW, time.monotonic() - begun


class Base(NamedTuple):
    """A pretrained run, and what its splits share."""

    run: RunFolder
    labelled: Labelled
    images: Images
    published: Labelled | None


class _Bases:
    """Pretrained runs as they are asked for, and what the report says of them."""

    def __init__(self, command: list[str], folder: Path, scene: Scene, methods: Sequence[str]) -> None:
        self._command, self._folder, self._scene, self._methods = command, folder, scene, methods
        self.facts: dict[str, Any] = {"shared": {"seconds": 0.0, "bases": 0}}

    def __call__(self, name: str, settings: list[str]) -> Base:
        """The run of this name with these settings, made or found.

        Raises:
            UserError: An inductive split was drawn from labelled pixels that turn out to hold no data.
        """
        run, scene = RunFolder(self._folder / name), self._scene
        pipeline_until(self._command, run, settings, "pretrain")
        labelled = Labelled.read(run, scene)
        if name != "base" and len(labelled.y) < len(scene.labelled_pixels()[0]):
            raise UserError(
                f"scene {scene.url}: expected data at all labelled pixels, found them at {len(labelled.y)}; "
                f"protocol {INDUCTIVE} draws its splits before data are looked for"
            )
        published = None
        if PUBLISHED in self._methods:
            published = Labelled.read(run, scene, as_published(Learner(run.path).config))
        told, records, shared = read_json(run.run), run.records(), self.facts["shared"]
        self.facts.setdefault("scene", {"name": Path(scene.url).stem} | told["scene"])
        self.facts.setdefault("config", told["config"])
        shared["seconds"] += records["reduce"]["wall_s"] + records["pretrain"]["wall_s"] + labelled.seconds
        shared["bases"] += 1
        return Base(run, labelled, _images(scene, run), published)


@dataclass(frozen=True)
class Draw:
    """One split: its pixels, which class position each has, and our features of them."""

    pixels: peers.Pixels
    codes: NDArray[np.int64]
    position: NDArray[np.int64]
    features: Kinds
    published: Kinds | None

    @staticmethod
    def of(config: Config, labelled: Labelled, published: Labelled | None) -> "Draw":
        """The split of the configuration; ``published`` holds the same pixels' features as published."""
        split = labelled.split(config.split, config.seed if config.split.seed is None else config.split.seed)
        used = np.flatnonzero(split != UNUSED)
        y, x, label = (values[used] for values in (labelled.y, labelled.x, labelled.label))
        block = block_of(y, x, config.split) if config.split.protocol == "blocks" else None
        pixels = peers.Pixels(y, x, label, split[used], block)
        kinds = [cast(Kinds, tuple(kind[torch.from_numpy(used)] for kind in one.features))
                 for one in (labelled, published) if one]  # fmt: skip
        codes, position = np.unique(pixels.label, return_inverse=True)
        return Draw(pixels, codes, position, kinds[0], kinds[1] if published else None)

    def facts(self, config: Config) -> dict[str, Any]:
        """What a reader must know of the split."""
        pixels = self.pixels
        test = pixels.split == TEST
        where = np.sort(pixels.y[test] * (1 << 32) + pixels.x[test])
        protocol = config.model_dump(mode="json")["split"]
        if protocol["train_per_class"] is None:
            del protocol["train_per_class"]
        return {
            "split": protocol, "codes": self.codes.tolist(),
            "n_train": int((pixels.split == TRAIN).sum()), "n_test": int(test.sum()),
            "overlap": overlap_of(config, pixels.y, pixels.x, pixels.split),
            "test_pixels": hashlib.sha256(where.tobytes()).hexdigest(),
        }  # fmt: skip


def measure(
    config: Config,
    base: RunFolder,
    labelled: Labelled,
    images: Images,
    cache: Path,
    published: Labelled | None = None,
    methods: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Scores of the methods on one split; each is kept in ``cache`` as soon as it is known."""
    key, draw = score_key(config, base, labelled.labels), Draw.of(config, labelled, published)
    found: dict[str, Any] = read_json(cache) if cache.exists() else {}
    if found.get("key") != key:
        found = {"key": key} | draw.facts(config) | {"methods": {}}
    scorers = _methods(config, base, draw, images)
    wanted = [name for name in scorers if methods is None or name in methods]
    for name in wanted:
        code, kept = code_of(name), found["methods"].get(name)
        if kept is None or kept["code"] != code:
            print(f"  {name}", file=sys.stderr, flush=True)
            found["methods"][name] = scorers[name]() | {"code": code, "commit": about()["commit"]}
            write_json(cache, found)
    scores = {name: found["methods"][name] for name in wanted}
    return {name: value for name, value in found.items() if name != "key"} | {"methods": scores}


def _methods(
    config: Config, base: RunFolder, draw: Draw, images: Images
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> what scores it: ours first, the method as published, peers."""
    learner, pixels = Learner(base.path, config), draw.pixels
    cube_BHW, profiles_DHW, profile_s = images

    def machine(variants: Variants, seconds: float = 0, *, derived: bool = True) -> Any:
        def score() -> dict[str, Any]:
            begun = time.monotonic()
            result = peers.peer(variants(), pixels)
            result |= {"map_s": None} if derived else {}  # prediction alone says little of a map
            return result | {"seconds": time.monotonic() - begun + seconds}

        return score

    def ours() -> list[tuple[str, peers.FloatArray]]:
        chosen = learner.purify(draw.features, draw.position, pixels.split == TRAIN)
        kept = (chosen.centre, chosen.pooled)
        centre, pooled = (draw.features[i][..., list(kept[i])].numpy() for i in range(2))
        return peers.feature_variants(centre, pooled, draw.features[2].numpy())

    found = {OURS: lambda: score(learner, draw.features, draw, mapping=True)}
    if draw.published is not None:
        features = draw.published
        published = as_published(config, int((pixels.split == TRAIN).sum()))
        found[PUBLISHED] = lambda: score(Learner(base.path, published), features, draw, mapping=True)
    return found | {
        peers.SPECTRA: machine(lambda: [("", peers.spectra(cube_BHW, pixels))], derived=False),
        peers.PROFILES: machine(lambda: [("", profiles_DHW[:, pixels.y, pixels.x].T)], profile_s),
        peers.FEATURES: machine(ours),
        peers.FOREST: lambda: peers.forest(peers.spectra(cube_BHW, pixels), pixels),
        peers.TRANSFORMER: lambda: peers.transformer(cube_BHW, pixels, config.split),
    }


def score(learner: Learner, features: Kinds, draw: Draw, *, mapping: bool = False) -> dict[str, Any]:
    """How the ensemble, trained on these features of the split's pixels, does on its test pixels.

    With ``mapping`` also how long a map takes.
    """
    begun = time.monotonic()
    learnt = learner.learn(features, draw.position, draw.pixels.split, (draw.pixels.y, draw.pixels.x))
    scores = {key: learnt.confusion.finish()[key] for key in ("oa", "aa", "kappa", "per_class")}
    said = {"ece": learnt.reliability.error(), "reliability": learnt.reliability.rows()}
    said |= {"sets": learnt.coverage.finish()} if learner.config.classifier.calibrate else {}
    spent = {"seconds": time.monotonic() - begun}
    return scores | said | spent | ({"map_s": learner.map_s(learnt)} if mapping else {})


def score_key(config: Config, base: RunFolder, labels: str) -> str:
    """What all scores of a split depend on: settings, the U-Net and the labels (their fingerprint)."""
    digest = hashlib.sha256(json.dumps([fingerprints(config, {}), labels], sort_keys=True).encode())
    digest.update(base.unet.read_bytes())
    return digest.hexdigest()


def code_of(method: str) -> str | None:
    """A hash of the code of a peer, or of what makes the published head; None: ours."""
    files = {
        OURS: (),
        PUBLISHED: FILES,
        peers.TRANSFORMER: tuple(Path(str(m.__file__)) for m in (peers, ssftt, network)),
    }.get(method, (Path(peers.__file__),))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return digest.hexdigest() if files else None


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "accuracy", arguments)


if __name__ == "__main__":
    sys.exit(cli())
