"""``pipeline/run.py`` that also notes each tile that an actor has computed, beside the run folder."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import map as map_stage
from pipeline.run import cli

LOG = str(Path(sys.argv[sys.argv.index("--out") + 1]).with_suffix(".computed"))


class CountingActor(map_stage.MapActor):
    """Lives in ``__main__``, so Ray takes it to its workers by value."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        row = super().__call__(batch)
        with open(LOG, "a") as log:
            log.write(f"{int(batch['unit'][0])} {os.getpid()}\n")
        return row


if __name__ == "__main__":
    map_stage.MapActor = CountingActor  # type: ignore[misc]
    sys.exit(cli())
