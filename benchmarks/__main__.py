"""``python -m benchmarks``: the quick benchmarks of speed, one table after another (some ten minutes).

Apart from these: ``accuracy``, ``ablation``, ``pretraining_length``, ``parts``, ``windows``, ``timesteps``,
``timestep_stage`` and ``regions`` (they need a scene or a run), ``memory`` and ``preparation`` (large
scenes), ``scale`` (an hour and more), ``soak`` (half an hour) and ``gpu``.
"""

import sys

from benchmarks import exact, map_stage, pretraining, rate

if __name__ == "__main__":
    sys.argv[1:] = []
    for benchmark in (exact, rate, pretraining, map_stage):
        benchmark.main()
