"""Ask the cluster's autoscaler for CPUs and GPUs, wait until they are there, then run a command.

The pipeline fits itself to the nodes that it finds when it starts. On a cluster that grows on demand
they must be there first::

    python cluster/wait_for.py --gpus 4 --cpus 32 -- python pipeline/run.py SCENE --out DIR
"""

import shlex
import signal
import subprocess
import sys
import time

import click
import ray
from ray.autoscaler.sdk import request_resources

_POLL_S = 5.0


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="GPUs to wait for.")
@click.option("--cpus", type=click.IntRange(min=0), default=0, help="CPUs to wait for.")
@click.option("--timeout", type=click.FloatRange(min=0), default=1800.0, help="Seconds to wait at most.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(gpus: int, cpus: int, timeout: float, command: tuple[str, ...]) -> None:
    """Wait for the resources, run COMMAND, give the nodes free again; ends with COMMAND's exit code."""
    if not gpus and not cpus:
        raise click.UsageError("expected --gpus, --cpus or both")
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError:
        raise click.ClickException(
            "expected a running Ray cluster, found none; see cluster/README.md"
        ) from None
    request_resources(bundles=[{"GPU": 1}] * gpus + [{"CPU": 1}] * cpus)
    try:
        _wait({"GPU": gpus, "CPU": cpus}, timeout)
        code = _run(command)
    finally:
        request_resources(bundles=[])
        ray.shutdown()
    # A command that a signal ended has a negative code here, 128 + signal in a shell.
    sys.exit(code if code >= 0 else 128 - code)


def _run(command: tuple[str, ...]) -> int:
    """Run a command that ends by itself where this process is asked to end; Ray would have it killed."""
    process = subprocess.Popen(command)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _: process.send_signal(number))
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(wanted: dict[str, int], timeout: float) -> None:
    begun, said = time.monotonic(), ""
    while True:
        found = ray.cluster_resources()
        lacking = [name for name, count in wanted.items() if found.get(name, 0) < count]
        if not lacking:
            return
        state = ", ".join(f"{found.get(name, 0):g} of {wanted[name]} {name}s" for name in lacking)
        if time.monotonic() - begun > timeout:
            raise click.ClickException(
                f"the cluster has {state} after {timeout:g} s; raise --timeout or the cluster's limits "
                f"(not run: {shlex.join(sys.argv[1:])})"
            )
        if state != said:
            print(f"waiting: the cluster has {state}", file=sys.stderr, flush=True)
            said = state
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
