"""One GPU against what `docs/scaling.md` assumes of it.

Forward passes alone, extractors, copies and trainers, each by the clock until the GPU is done, and
what the cost model makes of `benchmarks.layouts.ASSUMED` for the same GPU. Medians of all repeats.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import ray
import torch
from scipy.optimize import nnls

from benchmarks.extraction import count_padding
from benchmarks.gpu_parts import (
    EXTRACTOR_THREADS,
    PRODUCT,
    Call,
    Trained,
    copies,
    count_tokens,
    extraction,
    forward_alone,
    known_gpu,
    make_backbone,
    product_speed,
    sample_corpus,
    seconds_of,
    train,
)
from benchmarks.inputs import cluster
from benchmarks.layouts import (
    ASSUMED,
    BLOCK_TOKENS,
    CASES,
    CODECS,
    QQP_LARGE,
    Assumptions,
    Case,
    Gpu,
    Layout,
)
from benchmarks.results import table
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.utils.devices import keep_freed_memory

SAMPLE_TOKENS = 98_304
HEADS = (1, 16, 64)
# Tokens of a block, padded tokens of a forward pass, padding allowed in it.
SIZES = (
    (8192, 16_384, 0.04),
    (8192, 16_384, 0.25),
    (8192, 16_384, 1.0),
    (16_384, 16_384, 1.0),
    (16_384, 32_768, 1.0),
    (32_768, 32_768, 1.0),
)
TRAINED_BLOCKS = 4
COPIED_BYTES = BLOCK_TOKENS * QQP_LARGE.token_bytes()

Rows = list[list[str]]


@dataclass
class Found:
    """What was measured: tokens a second by case (and codec), and what trainers did."""

    copied: Mapping[str, list[float]]
    forward: dict[Case, float] = field(default_factory=dict)
    extracted: dict[tuple[Case, Codec], float] = field(default_factory=dict)
    trained: dict[tuple[Case, Codec, int], Trained] = field(default_factory=dict)


@dataclass(frozen=True)
class _Bench:
    """Where a case is measured, on how many tokens, and how often."""

    case: Case
    backbone: Backbone
    num_tokens: int
    repeats: int

    def corpora(self, block_tokens: int) -> list[Corpus]:
        """One to warm up and one for each repeat: shapes that are new to the GPU, as in a run."""
        rows, tokens = self.case.rows, self.num_tokens
        return [
            sample_corpus(rows, num_tokens=tokens, block_tokens=block_tokens, seed=seed)
            for seed in range(self.repeats + 1)
        ]

    def rate(self, corpora: Sequence[Corpus], calls: Sequence[Call]) -> float:
        """The median of the tokens a second of calls, one for each corpus."""
        seconds = seconds_of(calls, self.backbone.device)
        pairs = zip(corpora[1:], seconds, strict=True)
        return statistics.median(count_tokens(corpus) / each for corpus, each in pairs)


def measure(
    repeats: int,
    *,
    device: torch.device | None = None,
    cases: Sequence[Case] = CASES,
    num_tokens: int = SAMPLE_TOKENS,
) -> list[str]:
    """All tables, as lines of Markdown without a heading.

    Args:
        repeats: The number of repeats of each measurement.
        device: Where to measure; None takes the GPU.
        cases: Rows and backbones.
        num_tokens: Tokens of the sample of each.
    """
    torch.set_num_threads(1)  # as actors do
    keep_freed_memory()
    with cluster():  # for its object store
        return list(_lines(device or torch.device("cuda"), cases, num_tokens, repeats))


def _lines(
    device: torch.device, cases: Sequence[Case], num_tokens: int, repeats: int
) -> Iterator[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    gpu = known_gpu(name)
    product = product_speed(device, repeats)
    peak = f"{gpu.flops_per_second / 1e12:,.0f} TFLOP/s" if gpu else "not known here"
    yield (
        f"**{name}**, CUDA {torch.version.cuda}. Data sheet, dense {gpu.dtype if gpu else 'bf16'}: "
        f"{peak}. A product of two [{PRODUCT}, {PRODUCT}] matrices: {product / 1e12:,.0f} TFLOP/s. "
        f"Made-up weights and tokens; lengths as counted for docs/scaling.md. Blocks of "
        f"{BLOCK_TOKENS:,} tokens, where nothing else is said."
    )
    found = Found(copies(COPIED_BYTES, device, repeats))
    yield from ["", f"**Copies** of {COPIED_BYTES / 1e6:,.0f} MB, one at a time:", ""]
    rows = []
    for what, rates in found.copied.items():
        median, least, most = map(_giga, (statistics.median(rates), min(rates), max(rates)))
        rows.append([what, median, f"{least} to {most}"])
    yield from table(["", "GB/s", "lowest to highest"], rows)

    forward, extract, sizes, trained = Rows(), Rows(), Rows(), Rows()
    for case in cases:
        print(f"  {case}", file=sys.stderr, flush=True)
        bench = _Bench(case, make_backbone(case, device), num_tokens, repeats)
        forward.append(_forward_row(bench, gpu, found))
        extract += _extract_rows(bench, found)
        sizes.append(_sizes_row(bench))
        trained += _train_rows(bench, gpu, found)
        del bench
    yield from ["", "**Forward passes alone**, from inputs that are on the GPU:", ""]
    header = ["", "tokens/s", "TFLOP/s", "of the data sheet's", "tokens a pass", "padding"]
    yield from table(header, forward)
    yield from [
        "",
        f"**Extractors**: {EXTRACTOR_THREADS} threads, as in a run; up to the block in host "
        f"memory, and up to the block in the object store. The bound is the slower of the forward "
        f"pass alone and a copy to pinned memory.",
        "",
    ]
    header = ["", "forward alone", "copy", "extractor", "of the bound", "to the object store"]
    yield from table(header, extract)
    yield from [
        "",
        "**Sizes**: tokens/s of an extractor in bf16, by tokens of a block / padded tokens of a "
        "forward pass at most / padding allowed in it:",
        "",
    ]
    yield from table(["", *(f"{b:,} / {m:,} / {p:.0%}" for b, m, p in SIZES)], sizes)
    yield from ["", "**Trainers**, blocks from the object store:", ""]
    header = ["", "heads", "tokens/s", "ms a step", "ms a step and head", "as assumed, tokens/s"]
    yield from table([*header, "measured / assumed"], trained)
    if gpu is not None:
        yield from ["", "**Against docs/scaling.md**: measured / assumed.", ""]
        yield from _against_assumed(cases, gpu, found)
        yield from ["", "**The assumptions, beside what comes closest to this**:", ""]
        yield from _fitted(cases, gpu, found)


def _forward_row(bench: _Bench, gpu: Gpu | None, found: Found) -> list[str]:
    case, backbone = bench.case, bench.backbone
    corpora = bench.corpora(BLOCK_TOKENS)
    rate = bench.rate(corpora, [forward_alone(backbone, corpus) for corpus in corpora])
    found.forward[case] = rate
    flops = rate * case.flops
    passes, real, padded = count_padding(backbone, corpora[0].blocks[TRAIN])
    share = f"{flops / gpu.flops_per_second:.1%}" if gpu else "-"
    row = [str(case), f"{rate:,.0f}", f"{flops / 1e12:.1f}", share]
    return [*row, f"{real / passes:,.0f}", f"{padded / real:.1%}"]


def _extract_rows(bench: _Bench, found: Found) -> Rows:
    case = bench.case
    corpora = bench.corpora(BLOCK_TOKENS)
    rows = []
    for codec in CODECS:
        made, stored = (
            bench.rate(
                corpora, [extraction(bench.backbone, c, codec, stored=stored) for c in corpora]
            )
            for stored in (False, True)
        )
        found.extracted[case, codec] = stored
        copied = statistics.median(found.copied["GPU to pinned memory"])
        copied /= case.token_bytes(codec)
        bound = min(found.forward[case], copied)
        row = [f"{case}, {codec}", f"{found.forward[case]:,.0f}", f"{copied:,.0f}"]
        rows.append([*row, f"{made:,.0f}", f"{made / bound:.0%}", f"{stored:,.0f}"])
    return rows


def _sizes_row(bench: _Bench) -> list[str]:
    backbone = bench.backbone
    before = backbone.micro_batch_tokens, backbone.max_padding
    cells = []
    for block_tokens, micro_batch_tokens, max_padding in SIZES:
        backbone.micro_batch_tokens, backbone.max_padding = micro_batch_tokens, max_padding
        corpora = bench.corpora(block_tokens)
        calls = [extraction(backbone, corpus, "bf16") for corpus in corpora]
        cells.append(f"{bench.rate(corpora, calls):,.0f}")
    backbone.micro_batch_tokens, backbone.max_padding = before
    return [str(bench.case), *cells]


def _train_rows(bench: _Bench, gpu: Gpu | None, found: Found) -> Rows:
    case, device = bench.case, bench.backbone.device
    corpus = sample_corpus(case.rows, num_tokens=bench.num_tokens, block_tokens=BLOCK_TOKENS)
    rows = []
    for codec in CODECS:
        extractor = BlockExtractor(bench.backbone, corpus, codec)
        chosen = corpus.blocks[TRAIN][:TRAINED_BLOCKS]
        blocks = [ray.get(ray.put(extractor.extract(block.key))) for block in chosen]
        for heads in HEADS:
            trained = train(case, corpus, blocks, heads=heads, device=device, repeats=bench.repeats)
            found.trained[case, codec, heads] = trained
            step = 1e3 * trained.tokens / trained.rate / trained.steps
            row = [f"{case}, {codec}", f"{heads}", f"{trained.rate:,.0f}"]
            row += [f"{step:.2f}", f"{step / heads:.3f}"]
            if gpu is None:
                rows.append([*row, "-", "-"])
                continue
            assumed = _assumed_rate(case, codec, heads, trained, gpu)
            rows.append([*row, f"{assumed:,.0f}", f"{trained.rate / assumed:.2f}"])
    return rows


def _against_assumed(cases: Sequence[Case], gpu: Gpu, found: Found) -> list[str]:
    """What was measured, divided by what is assumed of the same work."""
    counts = sorted({heads for _, _, heads in found.trained})
    header = ["", "forward", *(f"extractor, {codec}" for codec in CODECS)]
    header += [f"{h} head{'s' if h > 1 else ''}, {codec}" for codec in CODECS for h in counts]
    rows = []
    for case in cases:
        ratios = [found.forward[case] / _layout(case, gpu, "bf16").made_rate]
        ratios += [found.extracted[case, c] / _layout(case, gpu, c).extract_rate for c in CODECS]
        for codec in CODECS:
            for heads in counts:
                trained = found.trained[case, codec, heads]
                ratios.append(trained.rate / _assumed_rate(case, codec, heads, trained, gpu))
        rows.append([str(case), *(f"{ratio:.2f}" for ratio in ratios)])
    return table(header, rows)


def _fitted(cases: Sequence[Case], gpu: Gpu, found: Found) -> list[str]:
    """Each assumption beside what was measured, or fitted to it."""
    shares = [found.forward[case] * case.flops / gpu.flops_per_second for case in cases]
    speeds = [rate * case.flops for (case, _), rate in found.extracted.items()]
    made = [rate * case.token_bytes(codec) for (case, codec), rate in found.extracted.items()]
    fitted = fit_trainers(gpu, found.trained)
    speed = ASSUMED.forward_flops_per_second(gpu)
    copied = _giga(ASSUMED.copy_bytes_per_second)
    rows = [
        [
            "a forward pass alone, of the data sheet's",
            f"{speed / gpu.flops_per_second:.0%}",
            f"{min(shares):.0%} to {max(shares):.0%}",
        ],
        [
            "an extractor, TFLOP/s",
            f"{speed / 1e12:.0f}",
            f"{min(speeds) / 1e12:.0f} to {max(speeds) / 1e12:.0f}",
        ],
        [
            "an extractor, GB/s to the object store",
            copied,
            f"{_giga(min(made))} to {_giga(max(made))}",
        ],
        ["copies to a trainer, GB/s", copied, _giga(fitted.copy_bytes_per_second)],
    ]
    for what, name in (
        ("a step, ms", "step_seconds"),
        ("a head's step, ms", "head_step_seconds"),
        ("a head's step where answers are spans, ms", "span_head_step_seconds"),
    ):
        rows.append([what, *(f"{1e3 * getattr(each, name):.2g}" for each in (ASSUMED, fitted))])
    return table(["", "assumed", "measured"], rows)


def fit_trainers(gpu: Gpu, trained: Mapping[tuple[Case, Codec, int], Trained]) -> Assumptions:
    """The assumptions with which `Layout.train_rate` comes closest to what trainers took.

    Seconds are a sum of what copies, products, steps and heads' steps take: least squares of their
    relative errors, with products as assumed and none of the others below zero.
    """
    rows, left = [], []
    for (case, codec, heads), each in trained.items():
        seconds = each.tokens / each.rate
        spans = case.rows.settings.per_token
        work = (
            each.tokens * case.token_bytes(codec),
            each.steps,
            each.steps * heads * (not spans),
            each.steps * heads * spans,
        )
        flops = each.tokens * heads * case.adapter_flops
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


def _assumed_rate(case: Case, codec: Codec, heads: int, trained: Trained, gpu: Gpu) -> float:
    """Tokens a second that a trainer is assumed to take, on batches as long as those measured."""
    rows = case.rows
    example_tokens = trained.tokens / (trained.steps * rows.settings.batch_size)
    rows = replace(rows, sample_tokens=round(example_tokens * rows.sample_examples))
    return _layout(replace(case, rows=rows), gpu, codec, heads).train_rate


def _layout(case: Case, gpu: Gpu, codec: Codec, heads: int = 1) -> Layout:
    return Layout(case, gpu, codec=codec, heads=heads)


def _giga(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.3g}"
