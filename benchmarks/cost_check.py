"""The cost model's formulas against what this machine does.

- Forward passes of MiniLM at several lengths against `forward_flops`, at the speed of one matrix
  product of the encoder's shape: where the formula is right their ratio is constant.
- Training steps of a head at several widths against `adapter_flops` likewise, and what a step takes
  that has next to nothing to compute.
- Epochs of real streams of `task=demo`, with 1 and 2 extractors and 0, 50 and 100 % of the bytes
  cached, against `epoch_seconds` with speeds that were measured just before, as `mode=plan` does,
  and against the estimate of later epochs from the speeds of the first.

The first two are CPU time of one thread, so that neighbours on the machine disturb little; streams
are timed by the clock. Medians of all repeats.
"""

import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch

from actors.cluster import cluster_resources
from benchmarks.inputs import CPU, Inputs, cluster, load_inputs, make_job, run_head
from benchmarks.results import table, turns
from benchmarks.stacked_heads import NUM_TOKENS, SHAPE, Steps, milliseconds
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.modes.plan import calibrate
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
from bertvision_stream.stream.stats import StreamStats
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.outcome import StreamState
from bertvision_stream.utils.devices import keep_freed_memory, pick_dtype

LENGTHS = (16, 32, 64, 128, 256)
FORWARD_TOKENS = 1024  # of every length: what a micro-batch has on a CPU
WIDTHS = (16, 64, 256)
HEADS = (1, 16, 64)
EXTRACTORS = (1, 2)
CACHED = (0.0, 0.5, 1.0)
EPOCHS = 3

COMPARED = ("", "MFLOP a token", "predicted, ms", "measured, ms", "ratio")

Step = Callable[[], object]


def measure(repeats: int) -> list[str]:
    """All tables, as lines of Markdown without a heading."""
    torch.set_num_threads(1)
    keep_freed_memory()
    keys, dtype = ["task=demo", f"train.epochs={EPOCHS}"], pick_dtype("auto", CPU)
    inputs = load_inputs(keys)
    with cluster():
        streams = list(_streams(keys, repeats))
    return [
        "**Forward pass.** `forward_flops` of MiniLM at the speed of one matrix product "
        f"({FORWARD_TOKENS:,} tokens, one thread), beside its measured time.",
        "",
        *_forward_passes(inputs, dtype, repeats),
        "",
        "**Heads.** `adapter_flops` of one head at the speed of a product as wide as its adapters, "
        f"beside the CPU time of its training step ({NUM_TOKENS:,} tokens).",
        "",
        *_adapters(dtype, repeats),
        "",
        "**Steps.** CPU time of a training step of heads of one adapter on hidden states 8 wide, "
        "where there is next to nothing to multiply: what each step and each head in it cost "
        "whatever they compute.",
        "",
        *_steps(inputs, repeats),
        "",
        "**Epochs of streams.** `epoch_seconds`, from speeds measured beforehand in one process as "
        "`mode=plan` does, beside what happened; later epochs also from the first one's speeds. "
        "Predicted / measured, and their ratio (measured over predicted).",
        "",
        *streams,
    ]


def _cpu_seconds(steps: list[Step], repeats: int) -> list[float]:
    """The median CPU time of each, in turns."""
    return [each / 1e3 for each in milliseconds(steps, 5 * repeats)]


def _product(dtype: torch.dtype, rows: int, depth: int, columns: int) -> Step:
    """A product of `[rows, depth]` with `[depth, columns]`."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, depth, generator=generator).to(dtype)
    right = torch.randn(depth, columns, generator=generator).to(dtype)
    return lambda: left @ right


def _forward_passes(inputs: Inputs, dtype: torch.dtype, repeats: int) -> Iterator[str]:
    backbone = Backbone(inputs.weights.build(), device=CPU, dtype=dtype)
    d, f = backbone.hidden_size, backbone.model.config.intermediate_size

    def forward(length: int) -> Step:
        ids = np.random.default_rng(0).integers(1000, 20000, FORWARD_TOKENS).astype(np.int32)
        lengths = np.full(FORWARD_TOKENS // length, length)
        return lambda: backbone.forward_packed(ids, np.zeros_like(ids), lengths)

    passes = [forward(length) for length in LENGTHS]
    *seconds, product = _cpu_seconds([*passes, _product(dtype, FORWARD_TOKENS, d, f)], repeats)
    speed = 2 * FORWARD_TOKENS * d * f / product
    rows = []
    for length, measured in zip(LENGTHS, seconds, strict=True):
        flops = forward_flops(
            num_layers=backbone.num_layers, hidden_size=d, intermediate_size=f, attended=length
        )
        predicted = flops * FORWARD_TOKENS / speed
        rows.append([f"{length} tokens an example", *_compared(flops, predicted, measured)])
    yield from table(COMPARED, rows)
    yield ""
    yield (
        f"The product [{FORWARD_TOKENS}, {d}] x [{d}, {f}] in {str(dtype).removeprefix('torch.')}: "
        f"{speed / 1e9:,.0f} GFLOP/s."
    )


def _adapters(dtype: torch.dtype, repeats: int) -> list[str]:
    d, depth = SHAPE.hidden_size, NUM_TOKENS * SHAPE.num_layers
    steps: list[Step] = []
    for width in WIDTHS:
        settings = load_settings(["task=demo", f"head.adapter_dim={width}"]).head
        steps.append(Steps(settings, 1, dtype).one_by_one)
    products = [_product(dtype, depth, d, width) for width in WIDTHS]
    found = _cpu_seconds([*steps, *products], repeats)
    rows = []
    for i, width in enumerate(WIDTHS):
        speed = 2 * depth * d * width / found[len(WIDTHS) + i]
        flops = adapter_flops(num_layers=SHAPE.num_layers, hidden_size=d, adapter_dim=width)
        cells = _compared(flops, flops * NUM_TOKENS / speed, found[i])
        rows.append([f"{width} adapters", *cells, f"{speed / 1e9:,.0f}"])
    return table([*COMPARED, "GFLOP/s of a product"], rows)


def _compared(flops: float, predicted: float, measured: float) -> list[str]:
    """Cells of `COMPARED`, of operations a token and two times in seconds."""
    times = (f"{1e3 * seconds:,.2f}" for seconds in (predicted, measured))
    return [f"{flops / 1e6:,.2f}", *times, f"{measured / predicted:.2f}"]


def _steps(inputs: Inputs, repeats: int) -> list[str]:
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

    def block_step(count: int) -> Step:
        heads = {f"{i}": HeadJob(settings.model_copy(update={"seed": i})) for i in range(count)}
        training = make_training(inputs.corpus, inputs.task, heads, shape, device=CPU)
        training.consume(Position(0, 0), block.key, encoded)
        return lambda: training.consume(training.position, BlockKey(TRAIN, 0), encoded)

    found = _cpu_seconds([block_step(count) for count in HEADS], repeats)
    num_steps = block.num_examples / settings.train.batch_size
    rows = []
    for count, seconds in zip(HEADS, found, strict=True):
        step = 1e3 * seconds / num_steps
        rows.append([f"{count}", f"{step:.2f}", f"{step / count:.2f}"])
    return table(["heads", "ms a step", "ms a head"], rows)


def _streams(keys: list[str], repeats: int) -> Iterator[str]:
    inputs = {n: load_inputs([*keys, f"extract.num_extractors={n}"]) for n in EXTRACTORS}
    cores = cluster_resources().num_cpus
    cases = [(count, share) for count in EXTRACTORS for share in CACHED]
    found: dict[tuple[int, float], list[list[float]]] = {case: [] for case in cases}
    rates = []
    for case in turns(repeats, cases):
        if case == cases[0]:
            rates.append(_calibrated(inputs[1]))
        count, share = case
        speeds = Speeds(
            extractors=count,
            extract_tokens_per_second=rates[-1][0],
            train_tokens_per_second=rates[-1][1],
            shared_cores=cores,
        )
        found[case].append(_stream(inputs[count], share, speeds))
    rows = []
    for (count, share), values in found.items():
        first, first_took, later, from_first, took = map(
            statistics.median, zip(*values, strict=True)
        )
        pairs = ((first, first_took), (later, took), (from_first, took))
        cells = [f"{a:.2f} / {b:.2f} ({b / a:.2f})" for a, b in pairs]
        rows.append([f"{count}", f"{share:.0%}", *cells])
    header = ["extractors", "cached", "first epoch, s", "later epochs, s"]
    yield from table([*header, "later, from the first, s"], rows)
    extract_rate, train_rate = map(statistics.median, zip(*rates, strict=True))
    tokens = sum(store.num_tokens for store in inputs[1].corpus.stores.values())
    yield ""
    yield (
        f"Measured beforehand: {extract_rate:,.0f} tokens/s extracted and {train_rate:,.0f} "
        f"trained by one thread, on {cores} cores in all; {inputs[1].task.name} has "
        f"{tokens:,} tokens an epoch. What ends an epoch (metrics, a checkpoint) is not part of "
        f"the prediction."
    )


def _stream(inputs: Inputs, share: float, speeds: Speeds) -> list[float]:
    """Run one stream.

    Returns:
        Seconds of the first epoch, predicted and measured; seconds of a later epoch, predicted from
        `speeds`, predicted from the first epoch, and measured.
    """
    job = make_job(inputs, cache=round(share * inputs.epoch_bytes))
    stats: list[StreamStats] = []
    outcome = run_head(job, on_epoch=lambda kept: stats.append(StreamState.of(kept).stats))
    work, later_work = (epoch_work(job.plan, first=each) for each in (True, False))
    # Busy times were measured while everybody else was busy, so that nobody shares cores once more.
    of_first = Speeds(
        extractors=job.placement.num_extractors,
        extract_tokens_per_second=stats[0].tokens_extracted / stats[0].extract_seconds,
        train_tokens_per_second=work.tokens / stats[0].train_seconds,
    )
    first, later = (epoch_seconds(each, speeds).total for each in (work, later_work))
    took, *later_took = outcome.epoch_seconds
    from_first = epoch_seconds(later_work, of_first).total
    return [first, took, later, from_first, statistics.mean(later_took)]


def _calibrated(inputs: Inputs) -> tuple[float, float]:
    """Tokens a second of an extractor and of a trainer, as `mode=plan` measures them."""
    job = make_job(inputs)
    flops = forward_flops(
        num_layers=job.shape.num_layers,
        hidden_size=job.shape.hidden_size,
        intermediate_size=job.config.intermediate_size,
        attended=mean_attended_tokens(job.stores[TRAIN].lengths.tolist()),
    )
    found = calibrate(job, forward_flops=flops)
    assert found.train_tokens_per_second is not None
    return found.extract_tokens_per_second, found.train_tokens_per_second
