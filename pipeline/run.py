"""The command: a scene through every stage, from wherever an earlier run stopped.

``python pipeline/run.py SCENE`` on one machine; ``ray job submit --working-dir . -- python
pipeline/run.py SCENE`` on a cluster.
"""

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Threads that spin while they wait ruin each other on busy cores; read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import yaml

from pipeline.artifacts import STAGES, RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.defaults import Settled, settle
from pipeline.errors import UserError, run_command
from pipeline.interrupt import arm, interruptible
from pipeline.labels import labelled_split
from pipeline.lock import locked
from pipeline.model import adopt_model, model_config
from pipeline.plan import Plan, make_plan
from pipeline.scene import Scene, open_scene
from pipeline.storage import has_group, location, make_folder, remove

_ROOT = Path(__file__).resolve().parent.parent
_STAGE = f"[{'|'.join(STAGES)}]"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scene", required=False)
@click.option("--config", "config_file", metavar="FILE", help="YAML configuration; see configs/.")
@click.option("--out", metavar="DIR", help="Run folder (default: runs/<scene name>).")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting, e.g. seed=1; all in docs/configuration.md.",
)
@click.option("--from", "first", metavar=_STAGE, help="Do this stage and later ones again.")
@click.option("--until", "last", metavar=_STAGE, help="Stop after this stage.")
@click.option("--model", metavar="RUN_DIR", help="Map with the trained parts of an earlier run.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and stop.")
@click.option("--demo", is_flag=True, help="Make a small synthetic city scene and map it.")
def main(
    scene: str | None,
    config_file: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    first: str | None,
    last: str | None,
    model: str | None,
    dry_run: bool,
    demo: bool,
) -> None:
    """Classify every pixel of SCENE (a Zarr group): reduce, pretrain, extract, classify, map, report."""
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None and stage not in STAGES:
            raise UserError(f"{option} {stage}: expected one of {', '.join(STAGES)}")
    if first and last and STAGES.index(last) < STAGES.index(first):
        raise UserError(f"--until {last}: comes before --from {first}; nothing would be done")
    if demo == (scene is not None):
        raise UserError("expected a SCENE or --demo, one of the two; see --help")
    folder = RunFolder(location(out or f"runs/{'demo' if demo else _name(str(scene))}").resolve())
    if "working_dir_files" in folder.path.parts:
        print(
            f"note: {folder.path} lies in Ray's copy of the working directory, which Ray removes; give an "
            "absolute --out",
            file=sys.stderr,
        )
    if folder.path.is_file():
        raise UserError(f"--out {folder.path}: expected a folder, found a file; choose another --out")
    if model is not None:
        if location(model).resolve() == folder.path:
            raise UserError(f"--out {folder.path}: is the model itself; choose another --out")
        settled = Settled(model_config(location(model), config_file, overrides), {})
    else:
        config_file = config_file or (str(_ROOT / "configs/demo.yaml") if demo else None)
        load_config(config_file, overrides)  # a mistake in it is told before anything is opened or made
    opened = None if demo else open_scene(str(scene))
    if opened and f"{folder.path}/".startswith(f"{location(opened.url).resolve()}/"):
        raise UserError(f"--out {folder.path}: lies in the scene, which is only read; choose another --out")
    with interruptible(), nullcontext() if dry_run else locked(folder.path):
        if demo and dry_run and not has_group(folder.path / "scene.zarr"):
            raise UserError("--dry-run changes nothing, and the demo's scene is not made yet; run it first")
        opened = opened or open_scene(_demo_scene(folder))
        if model is None:
            settled = settle(opened, folder, config_file, overrides)
        if settled.chosen:
            print(settled.note(opened), file=sys.stderr)
        _plan_and_run(settled, folder, opened, (first, last, model), dry_run)


def _name(scene: str) -> str:
    """The scene's name, for the run folder."""
    path = scene if "://" in scene else os.path.abspath(scene)
    return path.rstrip("/").rpartition("/")[2].removesuffix(".zarr")


def _plan_and_run(
    settled: Settled,
    folder: RunFolder,
    opened: Scene,
    asked: tuple[str | None, str | None, str | None],
    dry_run: bool,
) -> None:
    """What ``asked`` (--from, --until, --model) leaves to do."""
    (first, last, model), config = asked, settled.config
    if config.reduce.components > opened.bands:
        raise UserError(
            f"reduce.components must be at most the {opened.bands} bands of {opened.url}, "
            f"found {config.reduce.components}"
        )
    trained = location(model) if model else None
    plan = make_plan(config, folder, opened, first, last, trained, settled.chosen)
    learns = {"reduce", "extract"} if config.split.inductive and not model else {"extract"}
    if learns & set(plan.todo):
        labelled_split(config, opened)  # labels that cannot serve are found out before any work
    if first in plan.done:
        print(f"note: goes on with an interrupted --from {first}; {first} is done anew", file=sys.stderr)
    if stale := [stage for stage in plan.forget if stage not in plan.todo]:
        goes = "would remove" if dry_run else "removes"
        print(f"note: {goes} the results of {', '.join(stale)}, which rest on the old ones", file=sys.stderr)
    if dry_run:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        print(plan.table())
        _say_budget(config, folder, opened, plan)
        return
    _execute(settled, folder, opened, plan, first)
    _summary(folder)


def _say_budget(config: Config, folder: RunFolder, scene: Scene, plan: Plan) -> None:
    from pipeline import budget, machine, timing

    planned = budget.costs(config, folder, scene, plan)
    at_hand = machine.machine_at_hand(folder.path)
    try:
        budget.check_fits(config, planned, at_hand)
    except UserError:  # nor would a piece of it that is to be timed
        print(f"\n{budget.table(planned, {})}\n\n{at_hand}")
        raise
    seconds = timing.estimates(config, scene, planned, at_hand)
    times = {stage: timing.spoken(value) for stage, value in seconds.items()}
    print(f"\n{budget.table(planned, times)}\n\n{at_hand}\n{timing.said(seconds)}")


def _demo_scene(folder: RunFolder) -> str:
    from pipeline.demo import make_demo_scene

    path = folder.path / "scene.zarr"
    if not has_group(path):
        if folder.run.exists() and read_json(folder.run)["scene"]["url"] != str(path):
            raise UserError(f"--out {folder.path}: holds a run of another scene; choose another --out")
        for stray in (path, *folder.path.glob("scene.zarr.*.partial")):
            remove(stray)
        make_demo_scene(path)
    return str(path)


def _execute(settled: Settled, folder: RunFolder, scene: Scene, plan: Plan, first: str | None) -> None:
    """Forget what is to be made again, and run the stages that remain."""
    make_folder(folder.path, parents=True)
    config = settled.config
    packages = ("ray", "torch", "zarr", "xarray", "numpy")
    about = {
        "config": config.model_dump(mode="json"),
        "chosen": settled.chosen,
        "seed": config.seed,
        "scene": {"url": scene.url, "fingerprint": plan.scene_fingerprint, "bands": scene.bands,
                  "height": scene.height, "width": scene.width},
        "versions": {"python": sys.version.split()[0]}
        | {name: importlib.metadata.version(name) for name in packages},
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "model": str(plan.model) if plan.model else None,
    }  # fmt: skip
    if "reduce" in plan.done and not plan.model and folder.spectral.exists():
        about["bands_dropped"] = read_json(folder.spectral)["bands_dropped"]
    write_json(folder.run, about)
    for stage in reversed(plan.forget):  # a crash in between must not leave a stage without its inputs
        folder.forget(stage)
    # Not before the old results are gone; from now on the same command goes on with what it has made.
    _note(folder, {"from": first})
    if plan.model and "reduce" not in plan.todo:
        _adopt(plan.model, folder, scene)
    if plan.todo:
        _run_stages(config, folder, scene, plan)
    _note(folder, {"from": None})


def _run_stages(config: Config, folder: RunFolder, scene: Scene, plan: Plan) -> None:
    from pipeline.cluster import ray_session, share_out
    from pipeline.trained import check_trained

    with ray_session():
        arm()
        if set(plan.todo) - {"reduce", "report"}:
            share_out(config.cluster)  # what cannot fit is told before any work
        runners = _runners(config, folder, scene, plan)
        for stage in plan.todo:
            try:
                check_trained(config, folder, stage)
            except UserError:
                _note(folder, {"from": None})  # or the --from that it advises would go on with what is there
                raise
            folder.begin(stage, plan.fingerprints[stage])
            if plan.model and stage == "reduce":  # not before: a stage begins by removing what is not its own
                _adopt(plan.model, folder, scene)
            measured = runners[stage]()
            folder.finish(stage, **measured)
            if stage == "reduce" and not plan.model:
                _say_dropped(folder)


def _note(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Put facts into ``run.json``."""
    write_json(folder.run, read_json(folder.run) | facts)


def _adopt(model: Path, folder: RunFolder, scene: Scene) -> None:
    adopt_model(model, folder, scene)
    for note in read_json(folder.run)["assumed"]["notes"]:
        print(note, file=sys.stderr)


def _runners(
    config: Config, folder: RunFolder, scene: Scene, plan: Plan
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each stage calls; stages know the run folder, never each other's turn."""
    from pipeline import classify, extract, pretrain, reduce, report
    from pipeline import map as map_stage

    return {
        "reduce": lambda: reduce.run(config, folder, scene),
        "pretrain": lambda: pretrain.run(config, folder, scene, plan.fingerprints["pretrain"]),
        "extract": lambda: extract.run(config, folder, scene),
        "classify": lambda: classify.run(config, folder),
        "map": lambda: map_stage.run(config, folder, scene),
        "report": lambda: report.run(folder, scene, config.polygons.min_px),
    }


def _say_dropped(folder: RunFolder) -> None:
    dropped = read_json(folder.spectral)["bands_dropped"]
    _note(folder, {"bands_dropped": dropped})
    if dropped:
        print(f"bands without data, left out: {', '.join(map(str, dropped))}", file=sys.stderr)


def _summary(folder: RunFolder) -> None:
    if folder.metrics.exists():
        metrics = read_json(folder.metrics)
        print(
            f"OA {metrics['oa']:.4f}  AA {metrics['aa']:.4f}  kappa {metrics['kappa']:.4f}  "
            f"({metrics['split']['protocol']} split, {metrics['n_train']} training and "
            f"{metrics['n_test']} test pixels)"
        )
        if "map_oa_pixel" in metrics:
            print(
                f"of the map: OA {metrics['map_oa']:.4f} after the vote of supertokens, "
                f"{metrics['map_oa_pixel']:.4f} before"
            )
    for name in ("map.zarr", "map.tif", "map.gpkg", "report.html"):
        if (folder.path / name).exists():
            print(f"{name:12} {folder.path / name}")


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "run", arguments)


if __name__ == "__main__":
    sys.exit(cli())
