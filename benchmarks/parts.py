"""The parts beside each other on one scene: accuracy, size and time of each, through the whole pipeline.

``python -m benchmarks.parts --scene SCENE --config FILE --out DIR [--seeds 0,1,2,3,4]
[--protocols random,blocks] [--parts NAME,...]``. Reduction and pretraining see no labels: parts with the same
U-Net share them (DIR/base, DIR/base_<part>), and each run (DIR/<protocol>_seed<n>/<part>) begins from a
copy; a part that differs behind the features begins from the default's run, where that is among the parts.
The same command resumes. Leaves DIR/parts.json and DIR/parts.md.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import nn

from benchmarks.comparison import (
    comparing,
    overrides_of,
    pipeline_command,
    pipeline_until,
    protocol_names,
    seed_numbers,
)
from benchmarks.record import about
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.errors import UserError, run_command
from pipeline.trained import load_members, load_unet

DEFAULT = "selective fusion (default)"
PARTS = {
    DEFAULT: [],
    "hyperfeatures": ["fusion.kind=hyperfeatures"],
    "one timestep": ["features.timesteps=[50]"],
    "one timestep and stage": ["features.timesteps=[50]", "features.stages=[5]"],
    "multistage U-Net": ["unet.kind=multistage"],
    "SSFTT alone": ["classifier.kind=ssftt", "features.spectra=[]"],
    "SSFTT with diffusion features": ["classifier.kind=diffusion_ssftt", "features.spectra=[]"],
    "supertokens": ["map.regions=supertokens"],
    "classified supertokens": ["map.regions=supertokens", "supertokens.steps=300"],
}
"""Name in the table -> settings beside the configuration's."""
_CHANGES = {"fusion": ("classify", "map"), "map": ("map",), "supertokens": ("map",)}
"""Sections of settings behind the features -> the stages that they change."""
_COLUMNS = {
    "oa": "OA %", "aa": "AA %", "kappa": "kappa x 100", "map_oa": "OA of the map %",
    "parameters": "parameters of the classifier", "unet_parameters": "of the U-Net",
    "pretrain_s": "pretraining, s", "train_s": "features and training, s", "map_s": "map, s",
}  # fmt: skip
_PERCENT = ("oa", "aa", "kappa", "map_oa")


@click.command()
@comparing
@click.option("--parts", "part_list", help="Some of the parts, by name; all when absent.")
def main(
    url: str,
    config_file: str | None,
    out: str,
    seed_list: str,
    protocol_list: str,
    part_list: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Run the parts on the same splits of one scene."""
    seeds, protocols, parts = seed_numbers(seed_list), protocol_names(protocol_list), _parts(part_list)
    command = pipeline_command(url, config_file)
    for part in parts:
        for protocol in protocols:
            load_config(config_file, [*overrides_of(overrides, protocol), *PARTS[part]])
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with ray_session():
        for part in parts:
            base = _base(command, folder, part, config_file, overrides)
            for protocol in protocols:
                for seed in seeds:
                    run = RunFolder(folder / f"{protocol}_seed{seed}" / _file_name(part))
                    settings = [*overrides_of(overrides, protocol), *PARTS[part], f"split.seed={seed}"]
                    _begin(base, run, part)
                    pipeline_until(command, run, settings, "map")
                    rows.append({"part": part, "protocol": protocol, "seed": seed} | scores(run))
    report = about() | {"scene": Path(url).stem, "rows": rows}
    write_json(folder / "parts.json", report)
    page = markdown(report)
    (folder / "parts.md").write_text(page)
    print(page)


def _parts(text: str | None) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--parts {unknown[0]}: expected some of {'; '.join(PARTS)}")
    return names


def _file_name(part: str) -> str:
    return re.sub(r"\W+", "_", part.lower()).strip("_")


def _base(
    command: list[str], folder: Path, part: str, config_file: str | None, overrides: Sequence[str]
) -> RunFolder:
    """The run that has reduced the cube and pretrained the part's U-Net, or none for a part without."""
    settings = [setting for setting in PARTS[part] if setting.startswith("unet.")]
    if not load_config(config_file, PARTS[part]).reads_features:
        settings = PARTS[part]
    base = RunFolder(folder / ("base_" + _file_name(part) if settings else "base"))
    pipeline_until(command, base, [*overrides_of(overrides, None), *settings], "pretrain")
    return base


def _begin(base: RunFolder, run: RunFolder, part: str) -> None:
    """Copy what a part shares, unless its run has begun: the default's features, or its base."""
    if run.path.exists():
        return
    default = RunFolder(run.path.with_name(_file_name(DEFAULT)))
    sections = {setting.split(".")[0] for setting in PARTS[part]}
    shared = bool(sections) and sections <= _CHANGES.keys() and default.metrics.exists()
    partial = RunFolder(run.path.with_name(f"{run.path.name}.partial"))
    shutil.rmtree(partial.path, ignore_errors=True)
    source = default if shared else base
    shutil.copytree(source.path, partial.path, ignore=shutil.ignore_patterns("step-*.pt", ".lock"))
    for section in sections if shared else ():
        for stage in _CHANGES[section]:
            partial.forget(stage)
    partial.path.rename(run.path)


def scores(run: RunFolder) -> dict[str, float]:
    """What a finished run says of its part; seconds of one that was resumed are those of its last attempt."""
    metrics, records = read_json(run.metrics), run.records()
    found = {key: float(metrics[key]) for key in _PERCENT}
    config = run.config()
    found["parameters"] = sum(_learned(member) for member in load_members(config, run, gpu=False))
    found["unet_parameters"] = _learned(load_unet(run.unet)) if config.reads_features else 0
    found["pretrain_s"] = records["pretrain"]["wall_s"] if config.reads_features else 0
    found["train_s"] = sum(records[stage]["wall_s"] for stage in ("extract", "classify"))
    return found | {"map_s": records["map"]["wall_s"]}


def _learned(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def markdown(report: dict[str, Any]) -> str:
    """Mean and, over several seeds, standard deviation of each part on each split."""
    lines = [
        f"# Parts on {report['scene']}", "",
        f"- {report['date']}, commit {report['commit']}", f"- Machine: {report['machine']}",
        f"- Command: `{report['command']}`", "",
        "| split (seeds) | part | " + " | ".join(_COLUMNS.values()) + " |",
        "|" + "---|" * (len(_COLUMNS) + 2),
    ]  # fmt: skip
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault((row["protocol"], row["part"]), []).append(row)
    for (protocol, part), rows in groups.items():
        cells = [_cell(key, [row[key] for row in rows]) for key in _COLUMNS]
        lines.append(f"| {protocol} ({len(rows)}) | {part} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(key: str, values: Sequence[float]) -> str:
    if key not in _PERCENT:
        return f"{np.mean(values):,.0f}"
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{spread}"


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "parts", arguments)


if __name__ == "__main__":
    sys.exit(cli())
