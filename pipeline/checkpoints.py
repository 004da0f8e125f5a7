"""Checkpoints of pretraining: the newest two, each written whole or not at all, checked before use."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline import storage
from pipeline.errors import is_trouble

_KEPT = 2


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> int:
    """Write the state after ``step`` steps and return its bytes; of the older ones, one is kept."""
    path = folder / f"step-{step:08d}.pt"
    with storage.whole(path) as place, place.open("wb") as file:
        torch.save(state, file)
        written = file.tell()
    for old in checkpoints(folder)[:-_KEPT]:
        old.unlink()
    return written


def drop_damaged(folder: Path) -> None:
    """Remove newest checkpoints that are not what was written (by their checksums), and say so."""
    for path in reversed(checkpoints(folder)):
        if _is_whole(path):
            return
        print(f"{path}: damaged, removed; pretraining goes on from the one before", file=sys.stderr)
        path.unlink()


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state; no code in it is run."""
    with storage.local_copy(path) as file:
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    return state


def _is_whole(path: Path) -> bool:
    try:
        with storage.local_copy(path) as file, zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception as error:  # whatever zipfile meets in garbage
        if is_trouble(error):  # the disk's, not the file's
            raise
        return False
