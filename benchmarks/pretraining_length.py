"""How good are the features after so many steps, from a U-Net of such a size?

``python -m benchmarks.pretraining_length --scene SCENE --out DIR [--steps 1,150,600] [--channels 32,64]
[--seeds 0,1,2,3,4] [--protocols few10,blocks] [--picture FILE.png]``. Every length is a training of its
own, for the learning rate falls at its end. The defaults' head then learns from the features alone and from
features and spectra. Leaves DIR/pretraining_length.md and DIR/pretraining_length.json; the same command
resumes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure

from benchmarks.ablation import Kept
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
from pipeline.defaults import settle
from pipeline.errors import UserError, run_command
from pipeline.scene import open_scene

READ = {"features alone": ["features.spectra=[]"], "features and spectra": []}
"""What the head reads -> settings."""
_UNCALIBRATED = "classifier.calibrate=false"
_LAST = 50  # steps whose mean is the loss that is told


@click.command()
@comparing
@click.option("--steps", "step_list", default="1,150,300,600", show_default=True, help="Lengths, steps.")
@click.option("--channels", "channel_list", default="32", show_default=True, help="Widths of the U-Net.")
@click.option("--picture", type=click.Path(path_type=Path), help="PNG of OA against steps.")
def main(
    url: str,
    config_file: str | None,
    out: str,
    seed_list: str,
    protocol_list: str,
    overrides: tuple[str, ...],
    step_list: str,
    channel_list: str,
    picture: Path | None,
) -> None:
    """Score the features of U-Nets that were trained for different lengths."""
    seeds, protocols = seed_numbers(seed_list), protocol_names(protocol_list)
    lengths, widths = numbers("--steps", step_list), numbers("--channels", channel_list)
    scene, folder = open_scene(url), Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command, kept = pipeline_command(url, config_file), Kept(folder / "scores.json", scene)
    rows: list[dict[str, Any]] = []
    for width in widths:
        for steps in lengths:
            sized = [f"unet.channels={width}", f"pretrain.steps={steps}"]
            base = RunFolder(folder / f"base_{width}_{steps}")
            pipeline_until(command, base, [*overrides_of(overrides, None), *sized], "pretrain")
            oa: dict[str, list[float]] = {}
            for protocol in protocols:
                for name, settings in READ.items():
                    common = [*overrides_of(overrides, protocol), *sized, *settings, _UNCALIBRATED]
                    found = oa[f"{protocol}, {name}"] = []
                    for seed in seeds:
                        config = settle(scene, base, config_file, [*common, f"split.seed={seed}"]).config
                        said = f"{width} channels, {steps} steps, {protocol}, seed {seed}, {name}"
                        found.append(kept(said, config, base)["oa"])
            rows.append({"channels": width, "steps": steps, "oa": oa} | _training(base, steps))
    write_json(folder / "pretraining_length.json", about() | {"scene": Path(url).stem, "rows": rows})
    page = markdown(about(), Path(url).stem, rows)
    (folder / "pretraining_length.md").write_text(page)
    print(page)
    if picture:
        draw(rows, protocols, picture)


def _training(base: RunFolder, steps: int) -> dict[str, float]:
    """Seconds of the pretraining, and its loss at the end."""
    history = read_json(base.path / "pretrain" / "history.json")
    loss = np.mean([part["loss"] for part in history if part["step"] > steps - _LAST])
    return {"seconds": base.records()["pretrain"]["wall_s"], "loss": float(loss)}


def numbers(option: str, text: str) -> list[int]:
    """Ascending numbers from a list with commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{option} {text}: expected numbers from 1 such as 150,600")
    return sorted({int(part) for part in parts})


def markdown(facts: dict[str, Any], scene: str, rows: Sequence[dict[str, Any]]) -> str:
    """One row for each U-Net: its loss, its training's time, OA in percent over the seeds."""
    columns = list(rows[0]["oa"])
    lines = [
        f"# Pretraining on {scene}", "", f"- {facts['date']}, commit {facts['commit']}",
        f"- Machine: {facts['machine']}", f"- Command: `{facts['command']}`", "",
        f"| channels | steps | pretraining, s | loss, last {_LAST} steps | " + " | ".join(columns) + " |",
        "|" + "---|" * (4 + len(columns)),
    ]  # fmt: skip
    for row in rows:
        cells = [f"{100 * np.mean(row['oa'][c]):.2f} ± {100 * np.std(row['oa'][c], ddof=1):.2f}"
                 if len(row["oa"][c]) > 1 else f"{100 * row['oa'][c][0]:.2f}" for c in columns]  # fmt: skip
        told = f"{row['channels']} | {row['steps']:,} | {row['seconds']:.0f} | {row['loss']:.3f}"
        lines.append(f"| {told} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], protocols: Sequence[str], path: Path) -> None:
    """OA against steps, a panel for each protocol."""
    figure = Figure(figsize=(4.2 * len(protocols), 3.4), layout="constrained")
    for axes, protocol in zip(figure.subplots(1, len(protocols), squeeze=False)[0], protocols, strict=True):
        for i, width in enumerate(sorted({row["channels"] for row in rows})):
            mine = [row for row in rows if row["channels"] == width]
            for name, line in zip(READ, ("--o", "-o"), strict=True):
                oa = [100 * np.mean(row["oa"][f"{protocol}, {name}"]) for row in mine]
                axes.plot(
                    [row["steps"] for row in mine], oa, line, color=f"C{i}", label=f"{width} channels, {name}"
                )
        axes.set(xscale="log", xlabel="pretraining steps", ylabel="OA, %", title=protocol)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7, handlelength=4)
    figure.savefig(path, dpi=110)


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(main, "pretraining_length", arguments)


if __name__ == "__main__":
    sys.exit(cli())
