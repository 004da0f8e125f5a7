"""What a running stage tells Prometheus: counters and gauges through Ray's own metrics.

Ray exports each name with ``ray_`` before it (counters with ``_total`` behind it) on every node's
metrics port, and adds the job, the session and the node as labels. Ours say the stage. All of them are
set by the process that drives the stage, which outlives its actors: no count is lost with an actor, and
the gauges vanish when the run ends, so that nothing that has ended looks stalled.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

PREFIX = "mtmsd_"
COUNTERS = {
    "units": "Units of work that the stage has finished",
    "pixels": "Pixels that the stage has finished",
    "unet_passes": "Windows that went through the U-Net, once per timestep (pretraining: patches)",
    "bytes_read": "Bytes that the stage has read, uncompressed",
    "bytes_written": "Bytes that the stage has written, uncompressed",
}
"""Counts of a meter that only grow."""
GAUGES = {
    "units_left": "Units of work that the stage has yet to do",
    "seconds_left": "Seconds that the stage will take by its latest rate, as shown on the terminal",
    "pixels_per_second": "Pixels per second, mean since the stage began in this run",
    "peak_rss_bytes": "Largest resident memory of a worker of the stage, bytes",
    "loss": "Loss of the model in training, mean since the last report",
    "train_accuracy": "Overall accuracy on the training pixels of the last ensemble member, in [0, 1]",
}
"""Values that go up and down."""


class StageMetrics:
    """The metrics of one stage; made anew for each, in the process that drives it."""

    def __init__(self, stage: str, unit: str) -> None:
        self._sent = dict.fromkeys(COUNTERS, 0)
        tags = {"stage": stage, "unit": unit}
        self._counters = {name: Counter(PREFIX + name, text, tuple(tags)) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(PREFIX + name, text, tuple(tags)) for name, text in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags(tags)

    def update(self, counts: Mapping[str, float], elapsed_s: float) -> None:
        """Bring the metrics to a meter's counts, ``elapsed_s`` seconds after the stage began."""
        for name, counter in self._counters.items():
            grown = int(counts[name]) - self._sent[name]
            if grown > 0:
                counter.inc(grown)
                self._sent[name] += grown
        values = {**counts, "pixels_per_second": counts["pixels"] / max(elapsed_s, 1e-9)}
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(float(values[name]))
