"""What `mode=plan` says: a run on paper, as a record, as `plan.json` and as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bertvision_stream.report.tables import WIDTH, Table
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    EpochSeconds,
    Forecast,
    Speeds,
    break_even_tokens_per_second,
    extract_tokens_per_second,
    run_seconds,
)
from bertvision_stream.utils.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from bertvision_stream.stream.cost_model import Calibration


@dataclass(frozen=True, kw_only=True)
class CodecPlan:
    """What a codec makes of a task's bytes.

    Attributes:
        codec: Its name.
        token_bytes: Bytes of a token's hidden states of all layers.
        block_tokens: Most tokens of a block.
        block_bytes: Bytes of the largest block.
        blocks: Blocks of an epoch.
        epoch_bytes: Bytes that an epoch delivers.
        budget_bytes: Bytes that may exist at once.
        cached_share: Share of an epoch's bytes that is kept for later epochs.
        forecast: What all epochs come to; None where the budget refuses this codec.
        refused: Why it does.
    """

    codec: str
    token_bytes: int
    block_tokens: int
    block_bytes: int
    blocks: int
    epoch_bytes: int
    budget_bytes: int = 0
    cached_share: float = 0.0
    forecast: Forecast | None = None
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run of one task on paper.

    Attributes:
        task: Name of the task.
        backbone: Name of the backbone.
        num_layers: L, encoder layers + 1.
        hidden_size: D.
        train_examples: Counted.
        train_tokens: Counted.
        validation_examples: Of all validation splits, counted.
        validation_tokens: Likewise.
        epochs: `train.epochs`.
        dump_bytes: What BERTVision's layout would take on disk.
        forward_flops: Floating-point operations of a forward pass, for one token.
        adapter_flops: Those of a training step of one AdapterPooler; 0 for other heads.
        codecs: The chosen one first.
        speeds: Who works, and how fast.
        store_bytes: Of the object stores of all nodes.
        store_room: What of it is left for blocks beside tokens and weights.
        calibration: What was measured for `speeds`; None where all of it was given.
        first: The estimate of the first epoch.
        later: That of any later one.
        finetune_seconds: The least that the fine-tuning takes: three forward passes a token.
        notes: What was assumed, in sentences.
    """

    task: str
    backbone: str
    num_layers: int
    hidden_size: int
    train_examples: int
    train_tokens: int
    validation_examples: int
    validation_tokens: int
    epochs: int
    dump_bytes: int
    forward_flops: float
    adapter_flops: float
    codecs: tuple[CodecPlan, ...]
    speeds: Speeds
    store_bytes: int
    store_room: int
    calibration: Calibration | None
    first: EpochSeconds
    later: EpochSeconds
    finetune_seconds: float
    notes: tuple[str, ...]

    @property
    def chosen(self) -> CodecPlan:
        """The plan with `extract.codec`."""
        return self.codecs[0]

    @property
    def stream_seconds(self) -> float:
        """The estimate of all epochs."""
        return run_seconds(self.first, self.later, epochs=self.epochs)


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """The content of `plan.json`; what is estimated stands below `estimates`."""
    content = asdict(plan)
    speeds = content["speeds"]
    if plan.speeds.nodes == 1:
        del speeds["network_bytes_per_second"]  # infinite, which JSON has no word for
    content["estimates"] = {
        "first_epoch_seconds": content.pop("first"),
        "later_epoch_seconds": content.pop("later"),
        "stream_seconds": plan.stream_seconds,
        "finetune_seconds_at_least": content.pop("finetune_seconds"),
    }
    return content


def render_plan(plan: RunPlan) -> str:
    """The plan as text of at most 100 columns."""
    titles = ["codec", "bytes\na token", "largest\nblock", "an epoch"]
    titles += ["budget", "kept for\nlater epochs", "tokens of all\nepochs spared"]
    lines = [
        f"plan of task={plan.task} on {plan.backbone} ({plan.num_layers - 1} layers and the "
        f"embeddings, {plan.hidden_size:,} wide)",
        "",
        Table(titles, [_codec_row(each, plan) for each in plan.codecs]).text(),
        "* extract.codec",
        "",
    ]
    for subject, fact in _counted(plan):
        lines.append(_line(subject, fact))
    lines += ["", textwrap.fill(f"ESTIMATES, {_where_from(plan)}", WIDTH), ""]
    lines.append(_estimates(plan).text())
    for subject, fact in _estimated(plan):
        lines.append(_line(subject, fact))
    return "\n".join(lines) + "\n"


def _line(subject: str, fact: str) -> str:
    return textwrap.fill(f"{subject:<12}{fact}", WIDTH, subsequent_indent=" " * 12)


def _codec_row(each: CodecPlan, plan: RunPlan) -> list[str]:
    mark = "* " if each is plan.chosen else "  "
    row = [
        f"{mark}{each.codec}",
        f"{each.token_bytes:,}",
        format_bytes(each.block_bytes),
        format_bytes(each.epoch_bytes),
    ]
    if each.forecast is None:
        return [*row, "too small", "-", "-"]
    return [
        *row,
        format_bytes(each.budget_bytes),
        f"{each.cached_share:.0%}",
        f"{each.forecast.spared_share:.0%}",
    ]


def _counted(plan: RunPlan) -> Iterator[tuple[str, str]]:
    """What is known before anything runs."""
    chosen = plan.chosen
    assert chosen.forecast is not None
    yield (
        "windows" if plan.task in TASKS and TASKS[plan.task].per_token else "examples",
        f"{plan.train_examples:,} for training ({plan.train_tokens:,} tokens), "
        f"{plan.validation_examples:,} for validation ({plan.validation_tokens:,} tokens)",
    )
    yield (
        "blocks",
        f"{chosen.blocks:,} an epoch, of at most {chosen.block_tokens:,} tokens; over "
        f"{plan.epochs} epochs {chosen.forecast.blocks_extracted:,} forward passes of a block "
        f"({chosen.forecast.tokens_extracted:,} tokens), and "
        f"{chosen.forecast.blocks_from_cache:,} saved ({chosen.forecast.tokens_spared:,} tokens)",
    )
    yield (
        "memory",
        f"object stores of {format_bytes(plan.store_bytes)} in all, "
        f"{format_bytes(plan.store_room)} of it for blocks",
    )
    yield (
        "disk",
        f"0 B of hidden states; BERTVision's dump would take {format_bytes(plan.dump_bytes)}",
    )
    for each in plan.codecs:
        if each.refused:
            yield each.codec, each.refused
    for note in plan.notes:
        yield "note", note


def _where_from(plan: RunPlan) -> str:
    calibration = plan.calibration
    if calibration is None:
        return "from the speeds given; nothing was measured"
    threads = f"{calibration.threads} thread{'s' if calibration.threads > 1 else ''}"
    return (
        f"from {calibration.tokens:,} tokens measured here in {calibration.seconds:.1f} s, on "
        f"{calibration.device} in {calibration.dtype}, {threads}"
    )


def _estimates(plan: RunPlan) -> Table:
    titles = ["busy", "first epoch", "each\nlater epoch", "who"]
    speeds = plan.speeds
    link = f"{speeds.network_bytes_per_second / GIGABIT_BYTES:g} Gb/s a node"
    many = speeds.extractors > 1
    rate, each = speeds.train_tokens_per_second, " each" if speeds.trainers > 1 else ""
    who = {
        "extraction": f"{_many(speeds.extractors, 'extractor')} at "
        f"{speeds.extract_tokens_per_second:,.0f} tokens/s" + (" each" if many else ""),
        "transfer": f"{speeds.nodes} nodes, {link}" if speeds.nodes > 1 else "one node",
        "heads": f"{_many(speeds.trainers, 'trainer')} "
        + (f"at {rate:,.0f} tokens/s{each}" if rate else "of a speed not given"),
    }
    rows = []
    for stage in ("extraction", "transfer", "heads"):
        cells = []
        for epoch in (plan.first, plan.later):
            seconds = getattr(epoch, stage)
            shown = "?" if seconds is None else format_seconds(seconds)
            cells.append(f"* {shown}" if stage == epoch.bottleneck else shown)
        rows.append([stage, *cells, who[stage]])
    together = [format_seconds(plan.first.total), format_seconds(plan.later.total)]
    shared = f"on {speeds.shared_cores} cores" if speeds.shared_cores else "side by side"
    rows.append(["together", *together, shared])
    return Table(titles, rows)


def _estimated(plan: RunPlan) -> Iterator[tuple[str, str]]:
    speeds = plan.speeds
    first, later = plan.first.bottleneck, plan.later.bottleneck
    where = f"{first} in the first epoch, {later} in later ones"
    if plan.epochs == 1 or first == later:
        where = f"{first} in every epoch"
    yield "bottleneck", f"{where} (*)"
    yield (
        "streaming",
        f"about {format_seconds(plan.stream_seconds)} for {_many(plan.epochs, 'epoch')}, besides "
        f"the start of Ray and its actors",
    )
    if plan.finetune_seconds:
        least = format_seconds(plan.finetune_seconds)
        yield (
            "fine-tuning",
            f"at least {least} before that (three forward passes a token; the optimiser's steps "
            f"come on top), or nothing where the same one is found again",
        )
    delivered = plan.first.total and plan.chosen.epoch_bytes / plan.first.total
    if speeds.train_tokens_per_second is None:
        needed = (plan.train_tokens + plan.validation_tokens) / max(plan.later.total, 1e-9)
        yield (
            "heads",
            f"not part of the estimate: a trainer keeps up if it takes {needed:,.0f} tokens/s in "
            f"later epochs, {format_bytes(delivered)}/s in the first; give "
            f"plan.head_tokens_per_second to have it estimated",
        )
    if speeds.nodes > 1:
        even = break_even_tokens_per_second(
            plan.chosen.token_bytes, speeds.network_bytes_per_second
        )
        yield (
            "break-even",
            f"a link carries {even:,.0f} tokens/s: on a node whose extractors are faster, moving "
            f"hidden states takes longer than making them",
        )
    made = extract_tokens_per_second(
        forward_flops=plan.forward_flops,
        flops_per_second=100e12,
        token_bytes=plan.chosen.token_bytes,
    )
    yield (
        "operations",
        f"{format_count(plan.forward_flops / 1e6)} MFLOP a token forward"
        + (f", {plan.adapter_flops / 1e6:.2f} for an adapter's step" if plan.adapter_flops else "")
        + f": a device doing 100 TFLOP/s of them makes {made:,.0f} tokens/s and writes "
        f"{format_bytes(made * plan.chosen.token_bytes)}/s of hidden states",
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
