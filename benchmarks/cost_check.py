"""The cost model's formulas against what this machine does, in one go.

    python -m benchmarks.cost_check [--repeats N]

- Seconds of MiniLM's forward pass at several lengths, against `forward_flops` at the speed of one
  matrix product of the encoder's shape: where the formula is right their ratio is constant.
- Seconds of a head's training step at several widths, against `adapter_flops` likewise, and what a
  step takes that has next to nothing to compute.
- Seconds of an epoch of real streams of `task=demo`, with 1 and 2 extractors and 0, 50 and 100 % of
  the bytes cached, against `epoch_seconds` with speeds that were measured just before, as
  `mode=plan` does, and against the estimate that a run makes of its later epochs from its first.

The first two take one thread and its CPU time, so that neighbours on the machine disturb little;
streams are timed by the clock. Medians of all repeats.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import ray
import torch

from actors.cluster import cluster_resources, connect
from benchmarks.inputs import CPU, Inputs, load_inputs, run_streamed
from benchmarks.stacked_heads import NUM_TOKENS, SHAPE, Steps, milliseconds
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.modes.plan import calibrate
from bertvision_stream.report.tables import Table
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.cost_model import (
    Speeds,
    adapter_flops,
    epoch_seconds,
    epoch_work,
    forward_flops,
    mean_attended_tokens,
)
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.utils.devices import keep_freed_memory, pick_dtype

LENGTHS = (16, 32, 64, 128, 256)
FORWARD_TOKENS = 1024  # of every length: what a micro-batch has on a CPU
WIDTHS = (16, 64, 256)
HEADS = (1, 16, 64)
EXTRACTORS = (1, 2)
CACHED = (0.0, 0.5, 1.0)
EPOCHS = 3

Rows = list[list[str]]


def measure(repeats: int) -> list[str]:
    """All tables, as lines of Markdown without a heading.

    Starts a Ray cluster, and ends it, unless there is one already.
    """
    return list(_lines(repeats))


def _lines(repeats: int) -> Iterator[str]:
    """The lines of `measure`, as they come."""
    torch.set_num_threads(1)
    keep_freed_memory()
    inputs = load_inputs(["task=demo", f"train.epochs={EPOCHS}"])
    dtype = pick_dtype("auto", CPU)
    yield (
        "**Forward pass.** `forward_flops` of MiniLM at the speed of one matrix product "
        f"({FORWARD_TOKENS:,} tokens, one thread), beside its measured time."
    )
    yield ""
    yield from _forward_table(inputs, dtype, repeats)
    yield ""
    yield (
        "**Heads.** `adapter_flops` of one head at the speed of a product as wide as its adapters, "
        f"beside the CPU time of its training step ({NUM_TOKENS:,} tokens)."
    )
    yield ""
    yield from _adapter_table(dtype, repeats)
    yield ""
    yield (
        "**Steps.** CPU time of a training step of heads of one adapter on hidden states 8 wide, "
        "where there is next to nothing to multiply: what each step and each head in it cost "
        "whatever they compute."
    )
    yield ""
    yield from _step_table(inputs, repeats)
    yield ""
    yield (
        "**Epochs of streams.** `epoch_seconds`, from speeds measured beforehand in one process as "
        "`mode=plan` does, beside what happened; later epochs also from the first one's speeds, as "
        "at the end of every run. Predicted / measured, and their ratio (measured over predicted)."
    )
    yield ""
    yield from _stream_table(inputs, repeats)


def cpu_seconds(steps: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median CPU time of each, taken in turns."""
    return [each / 1e3 for each in milliseconds(steps, 5 * repeats)]


def matmul_step(dtype: torch.dtype, rows: int, depth: int, columns: int) -> Callable[[], object]:
    """A product of `[rows, depth]` with `[depth, columns]`."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, depth, generator=generator).to(dtype)
    right = torch.randn(depth, columns, generator=generator).to(dtype)
    return lambda: left @ right


def _forward_table(inputs: Inputs, dtype: torch.dtype, repeats: int) -> Iterable[str]:
    backbone = Backbone(inputs.weights.build(), device=CPU, dtype=dtype)
    config = backbone.model.config
    d, f = config.hidden_size, config.intermediate_size

    def forward(length: int) -> Callable[[], object]:
        ids = np.random.default_rng(0).integers(1000, 20000, FORWARD_TOKENS).astype(np.int32)
        lengths = np.full(FORWARD_TOKENS // length, length)
        return lambda: backbone.forward_packed(ids, np.zeros_like(ids), lengths)

    passes = [forward(length) for length in LENGTHS]
    *seconds, product = cpu_seconds([*passes, matmul_step(dtype, FORWARD_TOKENS, d, f)], repeats)
    speed = 2 * FORWARD_TOKENS * d * f / product
    rows: Rows = []
    for length, measured in zip(LENGTHS, seconds, strict=True):
        flops = forward_flops(
            num_layers=backbone.num_layers, hidden_size=d, intermediate_size=f, attended=length
        )
        rows.append(
            _compared(f"{length} tokens an example", flops, FORWARD_TOKENS, speed, measured)
        )
    return _flops_grid(rows, f"[{FORWARD_TOKENS}, {d}] x [{d}, {f}]", speed, dtype)


def _adapter_table(dtype: torch.dtype, repeats: int) -> Iterable[str]:
    d = SHAPE.hidden_size
    steps = []
    for width in WIDTHS:
        settings = load_settings(["task=demo", f"head.adapter_dim={width}"]).head
        steps.append(Steps(settings, 1, dtype).one_by_one)
    product_rows = NUM_TOKENS * SHAPE.num_layers
    products = [matmul_step(dtype, product_rows, d, width) for width in WIDTHS]
    found = cpu_seconds([*steps, *products], repeats)
    step_seconds, product_seconds = found[: len(WIDTHS)], found[len(WIDTHS) :]
    speeds = [
        2 * product_rows * d * width / seconds
        for width, seconds in zip(WIDTHS, product_seconds, strict=True)
    ]
    rows: Rows = []
    for width, measured, speed in zip(WIDTHS, step_seconds, speeds, strict=True):
        flops = adapter_flops(num_layers=SHAPE.num_layers, hidden_size=d, adapter_dim=width)
        compared = _compared(f"{width} adapters", flops, NUM_TOKENS, speed, measured)
        rows.append([*compared, f"{speed / 1e9:,.0f}"])
    header = ["", "MFLOP a token", "predicted, ms", "measured, ms", "ratio", "GFLOP/s of a product"]
    return _grid(header, rows)


def _step_table(inputs: Inputs, repeats: int) -> Iterable[str]:
    shape = HeadShape(num_layers=2, hidden_size=8, num_outputs=2, max_length=64)
    keys = ["task=demo", "head.adapter_dim=1", "train.epochs=1000"]
    settings = load_settings(keys).for_task("demo")
    block = inputs.corpus.blocks[TRAIN][0]
    rng = np.random.default_rng(0)
    encoded = EncodedBlock(
        hidden=rng.integers(0, 2**14, (block.num_tokens, 2, 8)).astype(np.int16),
        scales=np.empty(0, dtype=np.float32),
        logits=np.zeros((block.num_examples, 2), dtype=np.float32),
    )
    num_steps = block.num_examples / settings.train.batch_size

    def block_step(heads: int) -> Callable[[], object]:
        training = make_training(
            inputs.corpus,
            inputs.data.task,
            {f"{i}": HeadJob(settings.model_copy(update={"seed": i})) for i in range(heads)},
            shape,
            device=CPU,
        )
        training.consume(Position(0, 0), block.key, encoded)

        def consume() -> None:
            training.consume(training.position, BlockKey(TRAIN, 0), encoded)

        return consume

    found = cpu_seconds([block_step(heads) for heads in HEADS], repeats)
    rows = [
        [f"{heads}", f"{1e3 * s / num_steps:.2f}", f"{1e3 * s / num_steps / heads:.2f}"]
        for heads, s in zip(HEADS, found, strict=True)
    ]
    return _grid(["heads", "ms a step", "ms a head"], rows)


def _stream_table(inputs: Inputs, repeats: int) -> Iterable[str]:
    began_here = not ray.is_initialized()
    connect(None)
    try:
        return list(_stream_rows(inputs, repeats))
    finally:
        if began_here:
            ray.shutdown()


def _stream_rows(inputs: Inputs, repeats: int) -> Iterable[str]:
    cores = cluster_resources().num_cpus
    cases = [(n, share) for n in EXTRACTORS for share in CACHED]
    firsts: dict[tuple[int, float], list[tuple[float, float]]] = {case: [] for case in cases}
    laters: dict[tuple[int, float], list[tuple[float, float, float]]] = {c: [] for c in cases}
    rates: list[tuple[float, float]] = []
    for _ in range(repeats):
        rates.append(_calibrated(inputs))
        extract_rate, train_rate = rates[-1]
        for case in cases:
            extractors, share = case
            some = _with_extractors(inputs, extractors)
            plan, outcome = run_streamed(some, cache=round(share * inputs.epoch_bytes))
            speeds = Speeds(
                extractors=extractors,
                extract_tokens_per_second=extract_rate,
                train_tokens_per_second=train_rate,
                shared_cores=cores,
            )
            first = epoch_seconds(epoch_work(plan, first=True), speeds).total
            later = epoch_seconds(epoch_work(plan, first=False), speeds).total
            firsts[case].append((first, outcome.epoch_seconds[0]))
            from_first = outcome.check.later_epoch_seconds
            assert from_first is not None
            laters[case].append((later, from_first.predicted, from_first.actual))
    rows: Rows = []
    for case in cases:
        extractors, share = case
        first, first_took = (statistics.median(each) for each in zip(*firsts[case], strict=True))
        later, from_first, took = (
            statistics.median(each) for each in zip(*laters[case], strict=True)
        )
        pairs = ((first, first_took), (later, took), (from_first, took))
        cells = [f"{a:.2f} / {b:.2f} ({b / a:.2f})" for a, b in pairs]
        rows.append([f"{extractors}", f"{share:.0%}", *cells])
    extract_rate, train_rate = (statistics.median(each) for each in zip(*rates, strict=True))
    header = ["extractors", "cached", "first epoch, s", "later epochs, s"]
    yield from _grid([*header, "later, from the first, s"], rows)
    yield ""
    yield (
        f"Measured beforehand: {extract_rate:,.0f} tokens/s extracted and {train_rate:,.0f} "
        f"trained by one thread, on {cores} cores in all; {inputs.data.task.name} has "
        f"{sum(s.num_tokens for s in inputs.corpus.stores.values()):,} tokens an epoch. What ends "
        f"an epoch (metrics, a checkpoint) is not part of the prediction."
    )


def _calibrated(inputs: Inputs) -> tuple[float, float]:
    """Tokens a second of an extractor and of a trainer, as `mode=plan` measures them."""
    model = inputs.weights.build()
    store = inputs.corpus.stores[TRAIN]
    flops = forward_flops(
        num_layers=inputs.shape.num_layers,
        hidden_size=inputs.shape.hidden_size,
        intermediate_size=model.config.intermediate_size,
        attended=mean_attended_tokens(store.lengths.tolist()),
    )
    found = calibrate(
        model.config,
        store,
        inputs.data.task,
        inputs.shape,
        inputs.settings,
        device=CPU,
        num_threads=1,
        forward_flops=flops,
        heads=1,
    )
    assert found.train_tokens_per_second is not None
    return found.extract_tokens_per_second, found.train_tokens_per_second


def _with_extractors(inputs: Inputs, count: int) -> Inputs:
    extract = inputs.settings.extract.model_copy(update={"num_extractors": count})
    return replace(inputs, settings=inputs.settings.model_copy(update={"extract": extract}))


def _compared(what: str, flops: float, tokens: int, speed: float, measured: float) -> list[str]:
    predicted = flops * tokens / speed
    return [
        what,
        f"{flops / 1e6:,.2f}",
        f"{1e3 * predicted:,.2f}",
        f"{1e3 * measured:,.2f}",
        f"{measured / predicted:.2f}",
    ]


def _flops_grid(rows: Rows, product: str, speed: float, dtype: torch.dtype) -> Iterable[str]:
    header = ["", "MFLOP a token", "predicted, ms", "measured, ms", "ratio"]
    kind = str(dtype).removeprefix("torch.")
    return [
        *_grid(header, rows),
        "",
        f"The product {product} in {kind}: {speed / 1e9:,.0f} GFLOP/s.",
    ]


def _grid(header: list[str], rows: Rows) -> list[str]:
    return Table(header, rows).markdown().splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    start = time.perf_counter()
    for line in _lines(options.repeats):
        print(line, flush=True)
    print(f"\nin {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
