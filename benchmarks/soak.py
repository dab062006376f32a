"""A long run of a small task: the memory of every process must be flat after the first ten epochs.

    python -m benchmarks.soak [--epochs N] [--cache-percent P ...] [key=value ...]

After each epoch, and its checkpoint, the proportional set size of this process and of all below it
is read: driver, raylet, GCS, feature stream, trainer, extractors and Ray's other processes. Private
memory (heap) and shared memory (the object store) count apart. It ends with an error
where between the ten epochs from the 10th on and the last ten the median of a process has grown by
more than a twentieth and 8 MiB (at 200 epochs, 45 KiB an epoch).
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import ray

from actors.cluster import connect
from benchmarks.inputs import Inputs, load_inputs, run_streamed
from benchmarks.processes import Memory, memory, process_tree
from bertvision_stream.training.checkpoint import Checkpoint, save_checkpoint

MIB = 2**20
FIRST, SPAN = 9, 10  # epochs counted from 0
TOLERANCE, TOLERANCE_BYTES = 0.05, 8 * MIB


def soak(inputs: Inputs, cache: int) -> tuple[list[dict[int, Memory]], dict[int, str]]:
    """Memory by process id after each epoch, and what the processes are."""
    samples: list[dict[int, Memory]] = []
    roles: dict[int, str] = {}

    with tempfile.TemporaryDirectory() as folder:

        def keep(checkpoint: Checkpoint) -> None:
            save_checkpoint(Path(folder) / "last.safetensors", checkpoint)
            sample = {}
            for pid, role in process_tree().items():
                with suppress(OSError):
                    sample[pid] = memory(pid)
                    roles[pid] = role
            samples.append(sample)
            if len(samples) % 20 == 0:
                print(f"  {len(samples)} epochs", flush=True)

        plan, outcome = run_streamed(inputs, cache=cache, keep=keep)
    stats = outcome.stats
    print(
        f"{stats.blocks_extracted:,} blocks extracted, {stats.blocks_from_cache:,} from the cache; "
        f"{stats.peak_bytes / MIB:.1f} MiB at most, budget {plan.budget.total_bytes / MIB:.1f} MiB"
    )
    return samples, roles


def report(samples: list[dict[int, Memory]], roles: dict[int, str]) -> bool:
    """Print the memory of each process over time; whether all are flat."""
    starts = [FIRST + round(i * (len(samples) - SPAN - FIRST) / 4) for i in range(5)]
    print("MiB, median of ten epochs from epoch " + ", ".join(str(start + 1) for start in starts))
    flat = True
    lasting = [pid for pid in samples[FIRST] if all(pid in sample for sample in samples[FIRST:])]
    for pid in sorted(lasting, key=lambda pid: (roles[pid], pid)):
        text = f"{roles[pid]:<34}"
        for kind in ("private", "shared"):
            medians = [
                statistics.median(getattr(sample[pid], kind) for sample in samples[i : i + SPAN])
                for i in starts
            ]
            grown = medians[-1] - medians[0]
            leaks = grown > TOLERANCE_BYTES and grown > TOLERANCE * medians[0]
            flat = flat and not leaks
            if kind == "private" or max(medians) > MIB:
                text += f"  {kind}" + "".join(f"{median / MIB:7.1f}" for median in medians)
                text += " GROWS" if leaks else ""
        print(text)
    came = set(samples[-1]) - set(samples[FIRST])
    print(f"processes that came later: {', '.join(roles[pid] for pid in came) or 'none'}")
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--cache-percent", type=int, nargs="+", default=[100, 50, 0])
    keys = ["task=demo", "data.train_fraction=0.05"]
    parser.add_argument("keys", nargs="*", default=keys, help="settings")
    options = parser.parse_args()
    if options.epochs < FIRST + 2 * SPAN:
        parser.error(f"--epochs must be at least {FIRST + 2 * SPAN}")
    inputs = load_inputs([f"train.epochs={options.epochs}", *options.keys], block_tokens=512)
    connect(None)
    flat = True
    for percent in options.cache_percent:
        start = time.perf_counter()
        print(f"\ncache {percent} % of {inputs.epoch_bytes / MIB:.1f} MiB, {options.epochs} epochs")
        samples, roles = soak(inputs, inputs.epoch_bytes * percent // 100)
        flat = report(samples, roles) and flat
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    ray.shutdown()
    print("\nevery process is flat" if flat else "\nMEMORY GROWS")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
