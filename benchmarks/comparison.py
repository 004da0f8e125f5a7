"""What comparisons over splits share: their options, the protocols, and runs of the pipeline."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import click

from benchmarks.labelled import SHARED
from pipeline.artifacts import RunFolder
from pipeline.errors import UserError
from pipeline.run import cli

INDUCTIVE = "inductive"
PROTOCOLS = {
    "random": ["split.protocol=random"],
    **{f"few{n}": ["split.protocol=random", f"split.train_per_class={n}"] for n in (5, 10, 30)},
    "blocks": ["split.protocol=blocks"],
    **{f"guard{px}": ["split.protocol=blocks", f"split.guard_px={px}"] for px in (12, 24)},
    INDUCTIVE: ["split.protocol=blocks", "split.inductive=true"],
}
"""Name -> settings: shares of each class as configured; few labels; blocks, with a guard distance; blocks
that reduction and pretraining do not see either, so that every split has its own."""


def comparing(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a comparison: the scene, its configuration, folder and splits."""
    for option in reversed((
        click.option("--scene", "url", required=True, metavar="SCENE", help="Zarr group with labels."),
        click.option("--config", "config_file", metavar="FILE", help="YAML configuration; see configs/."),
        click.option("--out", required=True, metavar="DIR", help="Folder of the runs and the tables."),
        click.option("--seeds", "seed_list", default="0,1,2,3,4", show_default=True, help="Of the split."),
        click.option("--protocols", "protocol_list", default="random,blocks", show_default=True),
        click.option(
            "--set", "overrides", metavar="[PROTOCOL:]KEY=VALUE", multiple=True,
            help="Override for all runs, or for one protocol: blocks:split.train_per_class=30.",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


def seed_numbers(text: str) -> list[int]:
    """Seeds from a list such as 0,1,2."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--seeds {text}: expected distinct integers from 0 such as 0,1,2")
    return [int(part) for part in parts]


def protocol_names(text: str, *, shared: bool = True) -> list[str]:
    """Names of ``PROTOCOLS`` from a list with commas.

    Raises:
        UserError: A name is unknown or stands twice, or the command's splits share a pretraining
            (``shared``), which would see what an inductive split hides.
    """
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(PROTOCOLS) or len(set(parts)) < len(parts):
        raise UserError(f"--protocols {text}: expected some of {', '.join(PROTOCOLS)}, each once")
    if shared and INDUCTIVE in parts:
        raise UserError(f"--protocols {text}: splits share one pretraining here; see benchmarks.accuracy")
    return parts


def pipeline_command(url: str, config_file: str | None) -> list[str]:
    """Scene and configuration, as ``pipeline_until`` takes them."""
    return [url, *(["--config", config_file] if config_file else [])]


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
        if key in ("split.protocol", "split.inductive", "split.seed"):
            raise UserError(f"--set {override}: {key} is decided by --protocols and --seeds")
        if not colon or prefix == protocol:
            chosen.append(override[len(prefix) + 1 :] if colon else override)
    return chosen


def pipeline_until(command: list[str], run: RunFolder, overrides: list[str], until: str) -> None:
    """Run the pipeline's command, in this process; a finished run is only checked against the settings.

    Within ``ray_session`` all runs share one Ray. Ends the program with the command's exit code when it
    fails: its own message stands last.
    """
    print(f"{run.path.name}:", file=sys.stderr, flush=True)
    settings = [part for override in overrides for part in ("--set", override)]
    options = ["--out", str(run.path), "--until", until]
    with redirect_stdout(sys.stderr):
        code = cli([*command, *options, *settings])
    if code:
        sys.exit(code)
