"""Writes `docs/scaling.md`: what bounds a run on a GPU cluster, on paper.

    python -m benchmarks.scaling                                          # writes docs/scaling.md
    python -m benchmarks.scaling --count task=qqp data.path=/data/glue    # tokens of your own rows

The prose is in `scaling.md.j2` beside this file; every figure in it is computed here, from
published speeds, the assumptions below and the formulas that `mode=plan` uses.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.layouts import (
    A100,
    ASSUMED,
    BLOCK_TOKENS,
    CASES,
    CODECS,
    EPOCHS,
    FASTEST,
    GPUS,
    GPUS_PER_NODE,
    L4,
    QQP,
    QQP_BASE,
    QQP_LARGE,
    SQUAD,
    SQUAD_LARGE,
    STORE_BYTES,
    T4,
    TASK_NAMES,
    Layout,
)
from benchmarks.results import table
from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.tokenize import tokens_of
from bertvision_stream.models.backbone import load_tokenizer
from bertvision_stream.models.sources import locate
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    break_even_tokens_per_second,
    dump_bytes,
)
from bertvision_stream.utils.units import format_bytes, format_count

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "scaling.md"

NUM_GPUS = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = (25, 100, 200, 400)  # Gb/s
HEADS = (1, 16, 64)
DISKS = {"hard disk": 0.2, "network volume": 1.0, "NVMe, PCIe 3": 3.5, "NVMe, PCIe 4": 7.0}  # GB/s
LETTERS = {"extraction": "E", "transfer": "T", "heads": "H"}


def render() -> str:
    """The document."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {
        "short": _short,
        "bytes": format_bytes,
        "exact": lambda value: f"{value:,}",
        "rounded": lambda value: f"{_rounded(value):,}",
        "percent": lambda value: f"{100 * value:.0f} %",
    }
    one = Layout(QQP_LARGE, A100)
    one_int8 = replace(one, codec="int8")
    return environment.get_template("scaling.md.j2").render(
        assumed=ASSUMED,
        copy=f"{ASSUMED.copy_bytes_per_second / 1e9:g} GB/s",
        epochs=EPOCHS,
        gpus_per_node=GPUS_PER_NODE,
        block_tokens=BLOCK_TOKENS,
        store_bytes=STORE_BYTES,
        qqp=QQP,
        squad=SQUAD,
        one=one,
        one_int8=one_int8,
        copy_share=_copy_share(one),
        copy_share_int8=_copy_share(one_int8),
        one_l4=replace(one, gpu=L4),
        fastest=FASTEST,
        finetune_seconds=3 * QQP.train_tokens / one.made_rate,
        **{make.__name__: make() for make in TABLES},
    )


def work_table() -> str:
    header = ["", "examples", "tokens an epoch", "MFLOP a token", "bytes a token, bf16", "int8"]
    header += ["an epoch, bf16", "int8", "BERTVision's dump"]
    rows = []
    for case in CASES:
        task = case.rows
        sizes = [case.block_format(c).block_bytes(task.tokens, task.examples) for c in CODECS]
        dump = dump_bytes(
            task.examples,
            num_layers=case.num_layers,
            max_length=task.settings.max_length,
            hidden_size=case.hidden_size,
        )
        rows.append(
            [
                str(case),
                f"{task.examples:,}",
                format_count(task.tokens),
                f"{case.flops / 1e6:.0f}",
                *(f"{case.token_bytes(codec):,}" for codec in CODECS),
                *map(format_bytes, [*sizes, dump]),
            ]
        )
    return _grid(header, rows)


def speed_table() -> str:
    header = ["GPU", "TFLOP/s, dense"]
    for case in (QQP_BASE, QQP_LARGE):
        header += [f"{case.backbone}: tokens/s it makes", "that is", "with the copy"]
    rows = []
    for gpu in GPUS:
        row = [gpu.name, f"{gpu.flops_per_second / 1e12:g} ({gpu.dtype})"]
        for case in (QQP_BASE, QQP_LARGE):
            layout = Layout(case, gpu)
            made = layout.made_rate
            row += [
                f"{_rounded(made):,}",
                f"{made * case.token_bytes() / 1e9:.2g} GB/s",
                f"{_rounded(layout.extract_rate):,}",
            ]
        rows.append(row)
    return _grid(header, rows)


def epoch_table() -> str:
    """First and later epochs of QQP on BERT-large; an H100's are an A100's."""
    header = ["", *(f"{n} GPU{'s' if n > 1 else ''}" for n in NUM_GPUS)]
    lines = []
    for network in (100, 25):
        for gpu in (T4, L4, A100):
            for first in (True, False):
                layouts = [Layout(QQP_LARGE, gpu, n, network=network) for n in NUM_GPUS]
                name = f"{gpu.name}, {network} Gb/s, {'first' if first else 'later'}"
                lines.append([name, *(_epoch(each, first=first) for each in layouts)])
    return _grid(header, lines)


def enough_table() -> str:
    header = ["", *(gpu.name for gpu in GPUS)]
    rows = []
    for case in CASES:
        for codec in CODECS:
            cells = []
            for gpu in GPUS:
                layouts = [Layout(case, gpu, codec=codec, network=n) for n in NETWORKS]
                found = [f"{each.enough_gpus}" for each in layouts]
                cells.append(found[0] if len(set(found)) == 1 else " / ".join(found))
            rows.append([f"{case}, {codec}", *cells])
    return _grid(header, rows)


def int8_table() -> str:
    header = ["", "first epoch, bf16", "int8", "later epochs, bf16", "int8"]
    rows = []
    for gpu, n, network in ((L4, 1, 100), (A100, 8, 100), (A100, 64, 25), (A100, 64, 100)):
        row = [f"{n} x {gpu.name}, {network} Gb/s" if n > 8 else f"{n} x {gpu.name}, one node"]
        for first in (True, False):
            for codec in CODECS:
                layout = Layout(SQUAD_LARGE, gpu, n, codec=codec, network=network)
                row.append(_epoch(layout, first=first))
        rows.append(row)
    return _grid(header, rows)


def cache_table() -> str:
    nodes = (1, 2, 4, 8)
    header = ["", *(f"{n} node{'s' if n > 1 else ''}" for n in nodes)]
    rows = []
    for case in CASES:
        cells = []
        for n in nodes:
            layouts = [Layout(case, A100, GPUS_PER_NODE * n, codec=codec) for codec in CODECS]
            budgets = [layout.plan.budget for layout in layouts]
            cells.append(" / ".join(f"{each.cached_share:.0%}" for each in budgets))
        rows.append([str(case), *cells])
    return _grid(header, rows)


def cache_time_table() -> str:
    header = ["", "passes spared", "not cached", "cached", "GPU time of forward passes", "cached"]
    rows = []
    layouts = [Layout(QQP_LARGE, T4, 8), Layout(QQP_LARGE, L4)]
    layouts += [Layout(SQUAD_LARGE, gpu, n) for gpu, n in ((L4, 1), (T4, 64), (A100, 8))]
    for layout in layouts:
        uncached = replace(layout, cached=False)
        hours = [each.forecast.tokens_extracted / each.extract_rate for each in (uncached, layout)]
        rows.append(
            [
                f"{TASK_NAMES[layout.case.rows.task]}, {layout.num_gpus} x {layout.gpu.name}",
                f"{layout.forecast.spared_share:.0%}",
                *(_short(each.seconds) for each in (uncached, layout)),
                *map(_short, hours),
            ]
        )
    return _grid(header, rows)


def heads_table() -> str:
    header = ["", *(f"{h} head{'s' if h > 1 else ''}" for h in HEADS), "64 on 8 trainers"]
    rows = []
    for case in CASES:
        cells = []
        for heads, trainers in (*((h, 1) for h in HEADS), (64, 8)):
            layout = Layout(case, A100, heads=heads, trainers=trainers)
            enough = [_gpus_of(replace(layout, gpu=gpu)) for gpu in (T4, L4, A100)]
            cells.append(f"{_rounded(layout.train_rate):,} ({' / '.join(enough)})")
        rows.append([str(case), *cells])
    return _grid(header, rows)


def _gpus_of(layout: Layout) -> str:
    """GPUs whose extractors keep a trainer busy."""
    return f"{layout.train_rate / layout.extract_rate:.2g}"


def break_even_table() -> str:
    return _against_making(
        "a link carries", {f"{n} Gb/s": n * GIGABIT_BYTES for n in NETWORKS}, with_copies=False
    )


def disk_table() -> str:
    disks = {f"{name}, {rate:g} GB/s": rate * 1e9 for name, rate in DISKS.items()}
    return _against_making("it reads", disks, with_copies=True)


def _against_making(what: str, sources: Mapping[str, float], *, with_copies: bool) -> str:
    """What sources of so many bytes a second bring, and how many GPUs make as much on QQP."""
    header = ["", f"{what}, tokens/s", "making them takes, TFLOP/s"]
    header += [f"that is {gpu.name}s" for gpu in GPUS]
    rows = []
    for case in (QQP_BASE, QQP_LARGE):
        layouts = [Layout(case, gpu) for gpu in GPUS]
        for name, bytes_per_second in sources.items():
            rate = break_even_tokens_per_second(case.token_bytes(), bytes_per_second)
            made = [each.extract_rate if with_copies else each.made_rate for each in layouts]
            tflops = rate * case.flops / 1e12
            rows.append(
                [
                    f"{case.backbone}, {name}",
                    f"{_rounded(rate):,}",
                    *(
                        f"{n:.2g}" if n < 10 else f"{n:.0f}"
                        for n in (tflops, *(rate / m for m in made))
                    ),
                ]
            )
    return _grid(header, rows)


def travel_table() -> str:
    header = ["a batch of QQP", "hidden states", "parameters of the head", "gradient", "ratio"]
    rows = []
    for case in (QQP_BASE, QQP_LARGE):
        batch = QQP.settings.batch_size * QQP.example_tokens * case.token_bytes()
        parameters = case.head_parameters
        gradient = 4 * parameters
        row = [case.backbone, format_bytes(batch), f"{parameters:,}", format_bytes(gradient)]
        rows.append([*row, f"{batch / gradient:,.0f}"])
    return _grid(header, rows)


def sensitivity_table() -> str:
    header = ["", "8 x T4", "1 x L4", "8 x L4", "1 x A100", "64 x A100", "8 x A100, 64 heads"]
    cases = {"as assumed": ASSUMED}
    for share in (0.2, 0.6):
        cases[f"forward passes get {share:.0%}"] = replace(ASSUMED, utilisation=share)
    for rate in (5, 20, 40):
        cases[f"copies of {rate} GB/s"] = replace(ASSUMED, copy_bytes_per_second=rate * 1e9)
    slower = replace(ASSUMED, extractor_flops_per_second=60e12)
    cases["an extractor does 60 TFLOP/s at most"] = slower
    for word, factor in (("half", 0.5), ("three times", 3)):
        cases[f"steps take {word} the time"] = replace(
            ASSUMED,
            step_seconds=factor * ASSUMED.step_seconds,
            head_step_seconds=factor * ASSUMED.head_step_seconds,
            span_head_step_seconds=factor * ASSUMED.span_head_step_seconds,
        )
    cases["heads' products get 3%"] = replace(ASSUMED, heads_utilisation=0.03)
    rows = []
    for name, assumed in cases.items():
        runs = ((T4, 8), (L4, 1), (L4, 8), (A100, 1), (A100, 64))
        layouts = [Layout(QQP_LARGE, gpu, n, assumed=assumed) for gpu, n in runs]
        layouts.append(Layout(QQP_LARGE, A100, 8, heads=64, assumed=assumed))
        rows.append([name, *(_epoch(each, first=True) for each in layouts)])
    return _grid(header, rows)


TABLES = (
    work_table,
    speed_table,
    epoch_table,
    enough_table,
    int8_table,
    cache_table,
    cache_time_table,
    heads_table,
    break_even_table,
    travel_table,
    disk_table,
    sensitivity_table,
)


def _epoch(layout: Layout, *, first: bool) -> str:
    """Its seconds, and the stage that bounds it."""
    epoch = layout.epoch(first=first)
    assert epoch.bottleneck is not None  # a layout knows the speed of its heads
    return f"{_short(epoch.total)} {LETTERS[epoch.bottleneck]}"


def _copy_share(layout: Layout) -> float:
    """Of a trainer's time."""
    copying = layout.case.token_bytes(layout.codec) / layout.assumed.copy_bytes_per_second
    return copying * layout.train_rate


def _rounded(value: float) -> int:
    """To three digits."""
    return round(float(f"{value:.3g}"))


def _short(seconds: float) -> str:
    """`12 s`, `3.4 min`, `2.1 h`."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(table(header, rows))


def count(keys: Sequence[str]) -> Iterator[str]:
    """Count the tokens of the rows of `key=value` settings, and yield what `Rows` has of them."""
    all_settings = load_settings(["backbone=minilm", *keys])
    for name in all_settings.tasks:
        settings = all_settings.for_task(name)
        data = load_task_data(settings)
        tokenizer = load_tokenizer(locate(settings.backbone.name))
        splits = (data.train, *data.validation)
        stores = [tokens_of(split, tokenizer, settings.data) for split in splits]
        lengths = np.concatenate([store.lengths for store in stores])
        rows = sum(len(split.questions or split.labels) for split in splits)
        yield (
            f"{name}: sample_rows={rows}, sample_examples={len(lengths)}, "
            f"sample_tokens={lengths.sum()}, sample_squares={(lengths**2).sum()}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--count", nargs="+", metavar="KEY=VALUE", help="count tokens of rows")
    options = parser.parse_args()
    if options.count:
        for line in count(options.count):
            print(line)
        return 0
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"written to {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
