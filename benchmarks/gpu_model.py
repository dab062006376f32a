"""What one GPU did, beside what the cost model makes of `benchmarks.layouts.ASSUMED` for it."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from benchmarks.gpu_parts import Trained
from benchmarks.layouts import (
    ASSUMED,
    BASE,
    LARGE,
    QQP,
    SQUAD,
    Assumptions,
    Gpu,
    Layout,
    Rows,
    Shape,
)
from bertvision_stream.report.tables import Table
from bertvision_stream.settings.types import Codec

CODECS: tuple[Codec, ...] = ("bf16", "int8")


@dataclass(frozen=True)
class Case:
    """Rows on a backbone."""

    rows: Rows
    shape: Shape

    def __str__(self) -> str:
        task = {"qqp": "QQP", "squad_v2": "SQuAD 2.0"}[self.rows.task]
        return f"{task}, {self.shape.name.removeprefix('BERT-')}"


CASES = tuple(Case(rows, shape) for rows in (QQP, SQUAD) for shape in (BASE, LARGE))


@dataclass
class Found:
    """What was measured: tokens a second by case (and codec), and what trainers did."""

    forward: dict[Case, float]
    extracted: dict[tuple[Case, Codec], float]
    trained: dict[tuple[Case, Codec, int], Trained]
    copied: Mapping[str, list[float]]


def assumed_table(cases: Sequence[Case], gpu: Gpu, found: Found) -> Iterator[str]:
    """What was measured, in what is assumed of the same work."""
    counts = sorted({heads for _, _, heads in found.trained})
    header = ["", "forward", *(f"extractor, {codec}" for codec in CODECS)]
    header += [f"{h} head{'s' if h > 1 else ''}, {codec}" for codec in CODECS for h in counts]
    rows = []
    for case in cases:
        ratios = [found.forward[case] / _layout(case, gpu, "bf16").made_rate]
        ratios += [
            found.extracted[case, codec] / _layout(case, gpu, codec).extract_rate
            for codec in CODECS
        ]
        for codec in CODECS:
            for heads in counts:
                trained = found.trained[case, codec, heads]
                rate = trained.tokens / statistics.median(trained.seconds)
                ratios.append(rate / assumed_rate(case, codec, heads, trained, gpu))
        rows.append([str(case), *(f"{ratio:.2f}" for ratio in ratios)])
    yield from grid(header, rows)


def fitted_table(cases: Sequence[Case], gpu: Gpu, found: Found) -> Iterator[str]:
    """Each assumption beside what was measured, or fitted to it."""
    shares = [
        found.forward[case] * case.shape.flops(case.rows) / gpu.flops_per_second for case in cases
    ]
    speeds = [rate * case.shape.flops(case.rows) for (case, _), rate in found.extracted.items()]
    made = [rate * case.shape.token_bytes(codec) for (case, codec), rate in found.extracted.items()]
    fitted = fit_trainers(gpu, found.trained)
    assumed_speed = ASSUMED.forward_flops_per_second(gpu)
    rows = [
        ["a forward pass alone, of the data sheet's",
         f"{assumed_speed / gpu.flops_per_second:.0%}",
         f"{min(shares):.0%} to {max(shares):.0%}"],
        ["an extractor, TFLOP/s", _tera(assumed_speed),
         f"{_tera(min(speeds))} to {_tera(max(speeds))}"],
        ["an extractor, GB/s to the object store", gigabytes(ASSUMED.copy_bytes_per_second),
         f"{gigabytes(min(made))} to {gigabytes(max(made))}"],
        ["copies to a trainer, GB/s", gigabytes(ASSUMED.copy_bytes_per_second),
         gigabytes(fitted.copy_bytes_per_second)],
        ["a step, ms", _milli(ASSUMED.step_seconds), _milli(fitted.step_seconds)],
        ["a head's step, ms", _milli(ASSUMED.head_step_seconds),
         _milli(fitted.head_step_seconds)],
        ["a head's step where answers are spans, ms", _milli(ASSUMED.span_head_step_seconds),
         _milli(fitted.span_head_step_seconds)],
    ]  # fmt: skip
    yield from grid(["", "assumed", "measured"], rows)


def fit_trainers(gpu: Gpu, trained: Mapping[tuple[Case, Codec, int], Trained]) -> Assumptions:
    """The assumptions with which `Layout.train_rate` comes closest to what trainers took.

    Seconds are a sum of what copies, products, steps and heads' steps take: least squares of their
    relative errors, with products as assumed and none of the others below zero.
    """
    rows, left = [], []
    for (case, codec, heads), each in trained.items():
        seconds = statistics.median(each.seconds)
        spans = case.rows.settings.per_token
        work = (
            each.tokens * case.shape.token_bytes(codec),
            each.steps,
            each.steps * heads * (not spans),
            each.steps * heads * spans,
        )
        flops = each.tokens * heads * case.shape.adapter_flops
        products = flops / (gpu.flops_per_second * ASSUMED.heads_utilisation)
        rows.append(np.array(work) / seconds)
        left.append(1 - products / seconds)
    matrix = np.stack(rows)
    scale = matrix.max(axis=0)
    scale[scale == 0] = 1  # no rows of that kind
    per_byte, step, head_step, span_head_step = nnls(matrix / scale, np.array(left))[0] / scale
    return replace(
        ASSUMED,
        copy_bytes_per_second=1 / max(float(per_byte), 1e-15),
        step_seconds=float(step),
        head_step_seconds=float(head_step),
        span_head_step_seconds=float(span_head_step),
    )


def assumed_rate(case: Case, codec: Codec, heads: int, trained: Trained, gpu: Gpu) -> float:
    """Tokens a second that a trainer is assumed to take, on batches as long as those measured."""
    rows = case.rows
    example_tokens = trained.tokens / (trained.steps * rows.settings.batch_size)
    rows = replace(rows, sample_tokens=round(example_tokens * rows.sample_examples))
    return _layout(replace(case, rows=rows), gpu, codec, heads).train_rate


def _layout(case: Case, gpu: Gpu, codec: Codec, heads: int = 1) -> Layout:
    return Layout(rows=case.rows, shape=case.shape, gpu=gpu, num_gpus=1, codec=codec, heads=heads)


def gigabytes(rate: float) -> str:
    return f"{rate / 1e9:.3g}"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.0f}"


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.2g}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return Table(header, rows).markdown().split("\n")
