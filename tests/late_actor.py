"""An actor for Ray's processes, which import it by name: of two, the second stands late."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np


class LateSecond:
    """The second actor stands two seconds after the first has begun a tile, which waits for that."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._stands = folder / "begun", folder / "stands"
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            _wait_for(self._begun)
            time.sleep(2)
            self._stands.touch()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._begun.touch()
        _wait_for(self._stands)
        return {"unit": batch["unit"], "process": np.array([os.getpid()])}


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)
