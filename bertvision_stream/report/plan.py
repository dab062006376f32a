"""What `mode=plan` says of a run: a record, the content of `plan.json`, and text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bertvision_stream.heads.shape import hidden_shape
from bertvision_stream.report.tables import WIDTH, Table
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    EpochSeconds,
    Forecast,
    Speeds,
    adapter_flops,
    break_even_tokens_per_second,
    dump_bytes,
    epoch_seconds,
    epoch_work,
    extract_tokens_per_second,
    run_seconds,
)
from bertvision_stream.utils.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from bertvision_stream.models.job import PlannedJob


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The speeds that were measured on this machine.

    Attributes:
        extract_tokens_per_second: The speed of one extractor: forward pass and codec.
        train_tokens_per_second: The speed of one trainer with all its heads; None if no head was
            trained.
        tokens: The number of tokens that were extracted for the measurement.
        seconds: The time that the measurement took in all.
        device: The device, `cpu` or `cuda`.
        dtype: The dtype of the forward pass, `bf16` or `fp32`.
        threads: The number of CPU threads.
        heads: The number of heads that were trained.
    """

    extract_tokens_per_second: float
    train_tokens_per_second: float | None
    tokens: int
    seconds: float
    device: str
    dtype: str
    threads: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class CodecPlan:
    """The bytes of a task with one codec; keys as in `plan.json`.

    Attributes:
        codec: The name of the codec.
        token_bytes: The bytes of one token's hidden states of the layers that are kept.
        block_tokens: The most tokens of a block.
        block_bytes: The bytes of the largest block.
        blocks: The number of blocks in an epoch.
        epoch_bytes: The bytes that an epoch delivers.
        budget_bytes: The bytes that may exist at once.
        cached_share: The share of an epoch's bytes that is kept for later epochs.
        forecast: What the stream does over all epochs; None if the budget is too small.
        refused: Why the budget is too small; empty if it is not.
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
    """A run of one task that was counted and estimated, and not started.

    Attributes:
        job: The task with its blocks, its budget and its actors.
        forward_flops: The floating-point operations of a forward pass for one token.
        codecs: The bytes with every codec, `extract.codec` first.
        speeds: Who works, and how fast.
        calibration: The measurement behind `speeds`; None if all of them were given.
        notes: What was assumed, in sentences.
    """

    job: PlannedJob
    forward_flops: float
    codecs: tuple[CodecPlan, ...]
    speeds: Speeds
    calibration: Calibration | None
    notes: tuple[str, ...]

    @property
    def chosen(self) -> CodecPlan:
        """The bytes with `extract.codec`."""
        return self.codecs[0]

    @property
    def counts(self) -> dict[str, int]:
        """The examples and tokens of the training split and of all others, by their JSON keys."""
        train = self.job.stores[TRAIN]
        validation = [store for name, store in self.job.stores.items() if name != TRAIN]
        return {
            "train_examples": train.num_examples,
            "train_tokens": train.num_tokens,
            "validation_examples": sum(store.num_examples for store in validation),
            "validation_tokens": sum(store.num_tokens for store in validation),
        }

    @property
    def dump_bytes(self) -> int:
        """The bytes that BERTVision's layout would take on disk."""
        shape, counts = self.job.shape, self.counts
        return dump_bytes(
            counts["train_examples"] + counts["validation_examples"],
            num_layers=shape.num_layers,
            max_length=shape.max_length,
            hidden_size=shape.hidden_size,
        )

    @property
    def adapter_flops(self) -> float:
        """The operations of a training step of an AdapterPooler, a token; 0 for other heads."""
        shape, head = self.job.shape, self.job.settings.head
        if head.kind != "adapter_pooler":
            return 0.0
        return adapter_flops(
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            adapter_dim=head.adapter_dim,
        )

    @property
    def first(self) -> EpochSeconds:
        """The estimate of the first epoch."""
        return epoch_seconds(epoch_work(self.job.plan, first=True), self.speeds)

    @property
    def later(self) -> EpochSeconds:
        """The estimate of any later epoch."""
        return epoch_seconds(epoch_work(self.job.plan, first=False), self.speeds)

    @property
    def stream_seconds(self) -> float:
        """The estimate of all epochs."""
        return run_seconds(self.first, self.later, epochs=self.job.plan.num_epochs)

    @property
    def finetune_seconds(self) -> float:
        """The least that the fine-tuning takes: as much as three forward passes of its tokens."""
        finetune = self.job.settings.finetune
        devices = self.speeds.shared_cores or finetune.num_workers
        tokens = 3 * finetune.epochs * self.counts["train_tokens"]
        return tokens / self.speeds.extract_tokens_per_second / devices


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """The content of `plan.json`: what is counted, and what is estimated below `estimates`."""
    job, shape, speeds = plan.job, plan.job.shape, asdict(plan.speeds)
    if plan.speeds.nodes == 1:
        del speeds["network_bytes_per_second"]  # it is infinite, and JSON has no such number
    return {
        "task": job.task.name,
        "backbone": job.settings.backbone.name,
        "num_layers": hidden_shape(job.config)[0],
        "layers": list(job.layers),
        "hidden_size": shape.hidden_size,
        **plan.counts,
        "epochs": job.plan.num_epochs,
        "dump_bytes": plan.dump_bytes,
        "forward_flops": plan.forward_flops,
        "adapter_flops": plan.adapter_flops,
        "codecs": [asdict(each) for each in plan.codecs],
        "speeds": speeds,
        "store_bytes": job.cluster.store_bytes,
        "store_room": job.store_bytes,
        "calibration": asdict(plan.calibration) if plan.calibration else None,
        "notes": list(plan.notes),
        "estimates": {
            "first_epoch_seconds": asdict(plan.first),
            "later_epoch_seconds": asdict(plan.later),
            "stream_seconds": plan.stream_seconds,
            "finetune_seconds_at_least": plan.finetune_seconds,
        },
    }


def render_plan(plan: RunPlan) -> str:
    """The content of `plan.txt`: the plan as text of at most 100 columns."""
    titles = ["codec", "bytes\na token", "largest\nblock", "an epoch"]
    titles += ["budget", "kept for\nlater epochs", "tokens of all\nepochs spared"]
    num_layers, hidden_size = hidden_shape(plan.job.config)
    kept = ""
    if plan.job.settings.extract.layers != "all":
        kept = f"; kept are {', '.join(map(str, plan.job.layers))}"
    lines = [
        f"plan of task={plan.job.task.name} on {plan.job.settings.backbone.name} "
        f"({num_layers - 1} layers and the embeddings, {hidden_size:,} wide{kept})",
        "",
        Table(titles, [_codec_row(each, plan.job) for each in plan.codecs]).text(),
        "* extract.codec",
        "",
        *_paragraphs(_counted(plan)),
        "",
        textwrap.fill(f"ESTIMATES, {_source_of_speeds(plan.calibration)}", WIDTH),
        "",
        _stages(plan).text(),
        *_paragraphs(_estimated(plan)),
    ]
    return "\n".join(lines) + "\n"


def _paragraphs(facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    for subject, fact in facts:
        yield textwrap.fill(f"{subject:<12}{fact}", WIDTH, subsequent_indent=" " * 12)


def _codec_row(each: CodecPlan, job: PlannedJob) -> list[str]:
    mark = "*" if each.codec == job.settings.extract.codec else " "
    row = [f"{mark} {each.codec}", f"{each.token_bytes:,}"]
    row += [format_bytes(each.block_bytes), format_bytes(each.epoch_bytes)]
    if each.forecast is None:
        return [*row, "too small", "-", "-"]
    shares = (each.cached_share, each.forecast.spared_share)
    return [*row, format_bytes(each.budget_bytes), *(f"{share:.0%}" for share in shares)]


def _counted(plan: RunPlan) -> list[tuple[str, str]]:
    """What is known before anything runs, as subjects and facts."""
    job, chosen, counts = plan.job, plan.chosen, plan.counts
    assert chosen.forecast is not None
    facts = {
        "windows" if job.task.per_token else "examples": f"{counts['train_examples']:,} for "
        f"training ({counts['train_tokens']:,} tokens), {counts['validation_examples']:,} for "
        f"validation ({counts['validation_tokens']:,} tokens)",
        "blocks": f"{chosen.blocks:,} an epoch, of at most {chosen.block_tokens:,} tokens; over "
        f"{job.plan.num_epochs} epochs {chosen.forecast.blocks_extracted:,} forward passes of a "
        f"block ({chosen.forecast.tokens_extracted:,} tokens), and "
        f"{chosen.forecast.blocks_from_cache:,} saved ({chosen.forecast.tokens_spared:,} tokens)",
        "memory": f"object stores of {format_bytes(job.cluster.store_bytes)} in all, "
        f"{format_bytes(job.store_bytes)} of it for blocks",
        "disk": f"0 B of hidden states; BERTVision's dump would take "
        f"{format_bytes(plan.dump_bytes)}",
    }
    refusals = [(each.codec, each.refused) for each in plan.codecs if each.refused]
    return [*facts.items(), *refusals, *(("note", note) for note in plan.notes)]


def _source_of_speeds(calibration: Calibration | None) -> str:
    if calibration is None:
        return "from the speeds given; nothing was measured"
    return (
        f"from {calibration.tokens:,} tokens measured here in {calibration.seconds:.1f} s, on "
        f"{calibration.device} in {calibration.dtype}, {_many(calibration.threads, 'thread')}"
    )


def _stages(plan: RunPlan) -> Table:
    """The seconds of each stage in the first epoch and in later ones."""
    speeds, epochs = plan.speeds, (plan.first, plan.later)
    link = f"{speeds.network_bytes_per_second / GIGABIT_BYTES:g} Gb/s a node"
    who = {
        "extraction": _workers(speeds.extractors, "extractor", speeds.extract_tokens_per_second),
        "transfer": f"{speeds.nodes} nodes, {link}" if speeds.nodes > 1 else "one node",
        "heads": _workers(speeds.trainers, "trainer", speeds.train_tokens_per_second),
    }
    rows = []
    for stage, workers in who.items():
        cells = []
        for epoch in epochs:
            seconds = getattr(epoch, stage)
            mark = "* " if stage == epoch.bottleneck else ""
            cells.append("?" if seconds is None else mark + format_seconds(seconds))
        rows.append([stage, *cells, workers])
    shared = f"on {speeds.shared_cores} cores" if speeds.shared_cores else "side by side"
    rows.append(["together", *(format_seconds(epoch.total) for epoch in epochs), shared])
    return Table(["busy", "first epoch", "each\nlater epoch", "who"], rows)


def _estimated(plan: RunPlan) -> list[tuple[str, str]]:
    """What follows from the speeds, as subjects and facts."""
    speeds, first, later, epochs = plan.speeds, plan.first, plan.later, plan.job.plan.num_epochs
    known = first.bottleneck is not None
    where = f"{first.bottleneck} in the first epoch, {later.bottleneck} in later ones (*)"
    if epochs == 1 or first.bottleneck == later.bottleneck:
        where = f"{first.bottleneck} in every epoch (*)"
    if not known:
        where = "not known, as the heads may be slower than all else"
    facts = {
        "bottleneck": where,
        "streaming": f"{'about' if known else 'at least'} {format_seconds(plan.stream_seconds)} "
        f"for {_many(epochs, 'epoch')}, besides the start of Ray and its actors",
    }
    if plan.finetune_seconds:
        facts["fine-tuning"] = (
            f"at least {format_seconds(plan.finetune_seconds)} before that (three forward passes a "
            f"token; the optimiser's steps come on top), or nothing where the same one is found "
            f"again"
        )
    token_bytes, epoch_bytes = plan.chosen.token_bytes, plan.chosen.epoch_bytes
    if speeds.train_tokens_per_second is None:
        # Where everything is cached and read on one node, a later epoch is estimated at 0 s.
        needed = sum(plan.job.plan.block_tokens.values()) / max(later.total, 1e-9)
        facts["heads"] = (
            f"not part of the estimate: a trainer keeps up if it takes {needed:,.0f} tokens/s in "
            f"later epochs, {format_bytes(epoch_bytes / first.total)}/s in the first; give "
            f"plan.head_tokens_per_second to have it estimated"
        )
    if speeds.nodes > 1:
        even = break_even_tokens_per_second(token_bytes, speeds.network_bytes_per_second)
        facts["break-even"] = (
            f"a link carries {even:,.0f} tokens/s: on a node whose extractors are faster, moving "
            f"hidden states takes longer than making them"
        )
    made = extract_tokens_per_second(
        forward_flops=plan.forward_flops, flops_per_second=100e12, token_bytes=token_bytes
    )
    step = f", {plan.adapter_flops / 1e6:.2f} for an adapter's step" if plan.adapter_flops else ""
    facts["operations"] = (
        f"{format_count(plan.forward_flops / 1e6)} MFLOP a token forward{step}: a device doing 100 "
        f"TFLOP/s of them makes {made:,.0f} tokens/s and writes "
        f"{format_bytes(made * token_bytes)}/s of hidden states"
    )
    return list(facts.items())


def _workers(count: int, noun: str, rate: float | None) -> str:
    if rate is None:
        return f"{_many(count, noun)} of a speed not given"
    return f"{_many(count, noun)} at {rate:,.0f} tokens/s{' each' if count > 1 else ''}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
