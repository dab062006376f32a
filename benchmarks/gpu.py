"""One GPU against what `docs/scaling.md` assumes of it.

    python -m benchmarks.gpu [--repeats N] [--tokens N]

Forward passes alone, extractors, copies and trainers, each by the clock until the GPU is done, and
what the cost model makes of `benchmarks.layouts.ASSUMED` for the same GPU. Medians of all repeats.
Needs a GPU; starts a Ray cluster for its object store, and ends it, unless there is one already.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

import ray
import torch

from actors.cluster import connect
from benchmarks.gpu_model import (
    CASES,
    CODECS,
    Case,
    Found,
    assumed_rate,
    assumed_table,
    fitted_table,
    gigabytes,
    grid,
)
from benchmarks.gpu_parts import (
    EXTRACTOR_THREADS,
    Trained,
    block_keys,
    copies,
    count_tokens,
    extraction,
    forward_alone,
    known_gpu,
    make_backbone,
    passes,
    sample_corpus,
    seconds_of,
    training,
)
from benchmarks.layouts import BLOCK_TOKENS, LARGE, Gpu
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.settings.types import Codec
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
COPIED_BYTES = BLOCK_TOKENS * LARGE.token_bytes()
PRODUCT = 8192  # rows, depth and columns of the matrix product whose speed is the ceiling

Grid = list[list[str]]


def measure(
    repeats: int,
    *,
    device: torch.device | None = None,
    cases: Sequence[Case] = CASES,
    num_tokens: int = SAMPLE_TOKENS,
) -> list[str]:
    """All tables, as lines of Markdown without a heading.

    Args:
        repeats: Of each measurement.
        device: By default the GPU.
        cases: Rows and backbones.
        num_tokens: Of the sample of each.
    """
    began_here = not ray.is_initialized()
    connect(None)
    try:
        chosen = device or torch.device("cuda")
        return list(_lines(chosen, cases, num_tokens, repeats))
    finally:
        if began_here:
            ray.shutdown()


def _lines(
    device: torch.device, cases: Sequence[Case], num_tokens: int, repeats: int
) -> Iterator[str]:
    torch.set_num_threads(1)  # as actors do
    keep_freed_memory()
    gpu = known_gpu(_name(device))
    product = _product_speed(device, repeats)
    peak = f"{gpu.flops_per_second / 1e12:,.0f} TFLOP/s" if gpu else "not known here"
    yield (
        f"**{_name(device)}**, CUDA {torch.version.cuda}. Data sheet, dense {_word(device)}: "
        f"{peak}. A product of two [{PRODUCT}, {PRODUCT}] matrices: {product / 1e12:,.0f} TFLOP/s. "
        f"Made-up weights and tokens; lengths as counted for docs/scaling.md. Blocks of "
        f"{BLOCK_TOKENS:,} tokens, where nothing else is said."
    )
    found = Found({}, {}, {}, copies(COPIED_BYTES, device, repeats))
    yield from ["", f"**Copies** of {COPIED_BYTES / 1e6:,.0f} MB, one at a time:", ""]
    rows = [
        [name, gigabytes(statistics.median(rates)), f"{gigabytes(min(rates))} to "
         f"{gigabytes(max(rates))}"]
        for name, rates in found.copied.items()
    ]  # fmt: skip
    yield from grid(["", "GB/s", "lowest to highest"], rows)

    forward, extract, sizes, train = [], [], [], []
    for case in cases:
        print(f"  {case}", file=sys.stderr, flush=True)
        backbone = make_backbone(case.rows, case.shape, device)
        corpus = sample_corpus(case.rows, num_tokens=num_tokens, block_tokens=BLOCK_TOKENS)
        forward += _forward_row(case, backbone, num_tokens, gpu, found, repeats)
        extract += _extract_rows(case, backbone, num_tokens, found, repeats)
        sizes.append(_sizes_row(case, backbone, num_tokens, repeats))
        for codec in CODECS:
            extractor = BlockExtractor(backbone, corpus, codec)
            keys = block_keys(corpus)[:TRAINED_BLOCKS]
            blocks = [ray.get(ray.put(extractor.extract(key))) for key in keys]
            for heads in HEADS:
                trained = training(
                    case.rows, case.shape, corpus, blocks,
                    heads=heads, device=device, repeats=repeats,
                )  # fmt: skip
                found.trained[case, codec, heads] = trained
                train.append(_train_row(case, codec, heads, trained, gpu))
            del blocks
        del backbone, extractor
    yield from ["", "**Forward passes alone**, from inputs that are on the GPU:", ""]
    header = ["", "tokens/s", "TFLOP/s", "of the data sheet's", "tokens a pass", "padding"]
    yield from grid(header, forward)
    yield from [
        "",
        f"**Extractors**: {EXTRACTOR_THREADS} threads, as in a run; up to the block in host "
        f"memory, and up to the block in the object store. The bound is the slower of the forward "
        f"pass alone and a copy to pinned memory.",
        "",
    ]
    header = ["", "forward alone", "copy", "extractor", "of the bound", "to the object store"]
    yield from grid(header, extract)
    yield from [
        "",
        "**Sizes**: tokens/s of an extractor in bf16, by tokens of a block / padded tokens of a "
        "forward pass at most / padding allowed in it:",
        "",
    ]
    yield from grid(["", *(f"{b:,} / {m:,} / {p:.0%}" for b, m, p in SIZES)], sizes)
    yield from ["", "**Trainers**, blocks from the object store:", ""]
    header = ["", "heads", "tokens/s", "ms a step", "ms a step and head", "as assumed, tokens/s"]
    yield from grid([*header, "measured / assumed"], train)
    if gpu is not None:
        yield from ["", "**Against docs/scaling.md**: measured / assumed.", ""]
        yield from assumed_table(cases, gpu, found)
        yield from ["", "**The assumptions, beside what comes closest to this**:", ""]
        yield from fitted_table(cases, gpu, found)


def _corpora(case: Case, num_tokens: int, block_tokens: int, repeats: int) -> list[Corpus]:
    """One to warm up and one for each repeat: shapes that are new to the GPU, as in a run."""
    return [
        sample_corpus(case.rows, num_tokens=num_tokens, block_tokens=block_tokens, seed=seed)
        for seed in range(repeats + 1)
    ]


def _rate(corpora: Sequence[Corpus], seconds: Sequence[float]) -> float:
    """Median of the tokens a second of all but the first."""
    pairs = zip(corpora[1:], seconds, strict=True)
    return statistics.median(count_tokens(corpus) / each for corpus, each in pairs)


def _forward_row(
    case: Case, backbone: Backbone, num_tokens: int, gpu: Gpu | None, found: Found, repeats: int
) -> Grid:
    corpora = _corpora(case, num_tokens, BLOCK_TOKENS, repeats)
    calls = [forward_alone(backbone, corpus) for corpus in corpora]
    rate = _rate(corpora, seconds_of(calls, backbone.device))
    found.forward[case] = rate
    flops = rate * case.shape.flops(case.rows)
    tokens = count_tokens(corpora[0])
    count, padded = passes(backbone, corpora[0])
    share = f"{flops / gpu.flops_per_second:.1%}" if gpu else "-"
    return [
        [str(case), f"{rate:,.0f}", f"{flops / 1e12:.1f}", share, f"{tokens / count:,.0f}",
         f"{padded / tokens - 1:.1%}"]
    ]  # fmt: skip


def _extract_rows(
    case: Case, backbone: Backbone, num_tokens: int, found: Found, repeats: int
) -> Grid:
    corpora = _corpora(case, num_tokens, BLOCK_TOKENS, repeats)
    rows = []
    for codec in CODECS:
        rates = []
        for stored in (False, True):
            calls = [extraction(backbone, each, codec, stored=stored) for each in corpora]
            rates.append(_rate(corpora, seconds_of(calls, backbone.device)))
        found.extracted[case, codec] = rates[1]
        copy = statistics.median(found.copied["GPU to pinned memory"])
        copied = copy / case.shape.token_bytes(codec)
        bound = min(found.forward[case], copied)
        rows.append(
            [f"{case}, {codec}", f"{found.forward[case]:,.0f}", f"{copied:,.0f}",
             f"{rates[0]:,.0f}", f"{rates[0] / bound:.0%}", f"{rates[1]:,.0f}"]
        )  # fmt: skip
    return rows


def _sizes_row(case: Case, backbone: Backbone, num_tokens: int, repeats: int) -> list[str]:
    before = backbone.micro_batch_tokens, backbone.max_padding
    cells = []
    for block_tokens, micro_batch_tokens, max_padding in SIZES:
        backbone.micro_batch_tokens, backbone.max_padding = micro_batch_tokens, max_padding
        corpora = _corpora(case, num_tokens, block_tokens, repeats)
        calls = [extraction(backbone, corpus, "bf16") for corpus in corpora]
        cells.append(f"{_rate(corpora, seconds_of(calls, backbone.device)):,.0f}")
    backbone.micro_batch_tokens, backbone.max_padding = before
    return [str(case), *cells]


def _train_row(
    case: Case, codec: Codec, heads: int, trained: Trained, gpu: Gpu | None
) -> list[str]:
    seconds = statistics.median(trained.seconds)
    rate = trained.tokens / seconds
    step = 1e3 * seconds / trained.steps
    row = [f"{case}, {codec}", f"{heads}", f"{rate:,.0f}", f"{step:.2f}", f"{step / heads:.3f}"]
    if gpu is None:
        return [*row, "-", "-"]
    assumed = assumed_rate(case, codec, heads, trained, gpu)
    return [*row, f"{assumed:,.0f}", f"{rate / assumed:.2f}"]


def _product_speed(device: torch.device, repeats: int) -> float:
    """Operations a second of one large product in bf16."""
    left, right = (
        torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    out = torch.empty_like(left)
    times = 20 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=out)

    return (
        times * 2 * PRODUCT**3 / statistics.median(seconds_of([multiply] * (repeats + 1), device))
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"


def _word(device: torch.device) -> str:
    gpu = known_gpu(_name(device))
    return gpu.dtype if gpu else "bf16"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=SAMPLE_TOKENS, help="of each sample")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here (torch.cuda.is_available() is false)")
    print("\n".join(measure(options.repeats, num_tokens=options.tokens)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
