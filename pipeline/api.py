"""The pipeline from Python: xarray in, xarray out, for notebooks and scripts.

``classify`` writes what it is given as a scene, runs the command ``pipeline/run.py`` in a process of its
own, with its progress, and opens the map. So notebooks and command lines share every stage, a run that
was begun in one can go on in the other, and Ray leaves nothing behind in the notebook's process.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from pipeline.api_scene import put_scene
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.lock import locked
from pipeline.storage import location

__all__ = ["classify", "open_map"]

_COMMAND = Path(__file__).resolve().with_name("run.py")


def classify(
    scene: xr.Dataset | xr.DataArray | str | Path,
    labels: Any = None,
    config: Mapping[str, Any] | Config | str | Path | None = None,
    *,
    folder: str | Path | None = None,
    model: str | Path | None = None,
    quiet: bool = False,
) -> xr.Dataset:
    """Classify every pixel of a scene.

    Args:
        scene: A dataset with ``reflectance`` (band, y, x) (the dimension may be called ``wavelength``),
            and if it has them ``wavelength`` (band; nm, or ``units`` in its attributes), ``y``, ``x``, a
            CRS and ``labels`` (y, x); or such an array alone; or the path or URL of a scene on disk.
            Dask arrays are written block by block.
        labels: (y, x) integers, 0 = unlabelled, in place of the scene's own; CF ``flag_values``,
            ``flag_meanings``, ``flag_colors`` in its attributes name the classes. With a scene on disk
            the scene is copied into the folder.
        config: A YAML file, or settings by section as in ``{"pretrain": {"steps": 500}}``; what they
            leave out follows the scene. A ``Config`` leaves nothing out.
        folder: The run folder, which is kept; the same call again goes on where it stopped, or opens the
            map. By default a temporary one, which is gone once the map lies in memory.
        model: The run folder of an earlier run: map with its trained parts, without any training.
        quiet: Show no progress.

    Returns:
        ``class`` (y, x) in the labels' own codes (0 = no data), ``confidence`` and ``entropy``, with the
        scene's coordinates and CRS. Attributes: ``oa``, ``aa``, ``kappa``, ``n_train``, ``n_test`` and
        ``metrics`` (all scores, JSON) on pixels that did not train; ``assumed`` when a model was used;
        ``run_folder`` when it is kept, and then the arrays are read when they are needed.

    Raises:
        UserError: Something that was given does not fit; nothing has been overwritten.
        RuntimeError: The command ended unexpectedly; the message ends with what it said last.

    Example:
        >>> result = classify(scene, config={"pretrain": {"steps": 500}})  # doctest: +SKIP
        >>> result["confidence"].plot()  # doctest: +SKIP
    """
    if labels is not None and model is not None:
        raise UserError("labels: not used with a model, which has its own classes; leave them out")
    if isinstance(scene, xr.DataArray):
        scene = scene.to_dataset(name="reflectance")
    settings = _settings(config)
    if model is None:
        load_config(*_parsed(settings))
    with _run_folder(folder) as run:
        path = scene if isinstance(scene, str | Path) else None
        if path is None or labels is not None:
            with locked(run):  # two calls must not write one scene
                path = put_scene(scene, labels, run / "scene.zarr")
        arguments = [_absolute(path), "--out", str(run), *settings]
        if model is not None:
            arguments += ["--model", _absolute(model)]
        _run(arguments, quiet)
        result = open_map(run)
        if isinstance(scene, xr.Dataset):
            # The very coordinates that were given, so that both align exactly.
            given = {axis: scene[axis] for axis in ("y", "x") if axis in scene.coords}
            result = result.assign_coords(given)
        if folder is None:
            del result.attrs["run_folder"]
            result = result.load()
        return result


def open_map(folder: str | Path) -> xr.Dataset:
    """The map of a finished run, with its scores as attributes; arrays are read when they are needed.

    Raises:
        UserError: The folder holds no map.
    """
    run = RunFolder(location(str(folder)).resolve())
    if not run.map.exists():
        raise UserError(f"{run.path}: expected a run folder with map.zarr, found none; run the stage map")
    dataset: xr.Dataset = xr.open_zarr(str(run.map), chunks={}, decode_coords="all")
    dataset.attrs["run_folder"] = str(run.path)
    if run.metrics.exists():
        metrics = read_json(run.metrics)
        dataset.attrs |= {key: metrics[key] for key in ("oa", "aa", "kappa", "n_train", "n_test")}
        dataset.attrs["metrics"] = json.dumps(metrics)
    assumed = read_json(run.run).get("assumed") or {}
    if assumed.get("notes"):
        dataset.attrs["assumed"] = "; ".join(assumed["notes"])
    return dataset


@contextmanager
def _run_folder(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield location(str(folder)).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mtmsd-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _absolute(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).resolve())


def _settings(config: Mapping[str, Any] | Config | str | Path | None) -> list[str]:
    """The configuration as options of the command."""
    if config is None:
        return []
    if isinstance(config, str | Path):
        return ["--config", str(Path(config).resolve())]
    given = config.model_dump(mode="json") if isinstance(config, Config) else config
    return [part for key, value in _flat(given) for part in ("--set", f"{key}={_yaml(value)}")]


def _parsed(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file and the overrides among options."""
    given = list(zip(settings[::2], settings[1::2], strict=True))
    files = [value for option, value in given if option == "--config"]
    return (files[0] if files else None), [value for option, value in given if option == "--set"]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml(value: Any) -> str:
    plain = json.loads(json.dumps(value, default=lambda other: other.tolist()))
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _run(arguments: Sequence[str], quiet: bool) -> None:
    """Run the command to its end and show what it says.

    Raises:
        UserError: It ended with an error that the user can mend.
        RuntimeError: It ended with another.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    said: list[str] = []
    command = [sys.executable, str(_COMMAND), *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = [*said[-20:], line.rstrip()]
                if not quiet and not line.startswith("error: "):
                    print(line, end="", file=sys.stderr)
        except BaseException:
            _stop(process)
            raise
    last = next((line for line in reversed(said) if line), "")
    if process.returncode == 2 and last.startswith("error: "):
        raise UserError(last.removeprefix("error: "))
    if process.returncode:
        raise RuntimeError(f"pipeline/run.py ended with exit code {process.returncode}:\n" + "\n".join(said))


def _stop(process: subprocess.Popen[str]) -> None:
    """End the command as Ctrl-C does, so that it can go on later."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
