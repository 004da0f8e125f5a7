"""``python -m benchmarks``: speed and memory, one table after another (twenty minutes to forty).

Apart from these: ``accuracy``, ``ablation``, ``pretraining_length``, ``parts``, ``windows``, ``timesteps``,
``timestep_stage`` and ``regions`` (they need a scene or a run), ``scale`` (an hour and more), ``soak`` (half
an hour) and ``gpu``.
"""

import sys

from benchmarks import exact, map_stage, memory, preparation, pretraining, rate

if __name__ == "__main__":
    sys.argv[1:] = []
    for benchmark in (exact, rate, pretraining, map_stage, memory, preparation):
        benchmark.main()
