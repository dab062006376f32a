"""Runs on GPU clusters that are not here: work, speeds and seconds, as `mode=plan` computes them.

Tasks have their published sizes and GPUs the speeds of their data sheets; `Assumptions` says what
they get of these. `benchmarks.scaling` makes tables of it.
"""

from dataclasses import dataclass, replace
from functools import cache

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.modes.planned_backbone import KNOWN_SHAPES
from bertvision_stream.settings.groups import HeadSettings, StreamSettings
from bertvision_stream.settings.tasks import TASKS, Task
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockFormat, BlockKey
from bertvision_stream.stream.budget import plan_budget
from bertvision_stream.stream.cost_model import (
    GIGABIT_BYTES,
    EpochSeconds,
    Forecast,
    Speeds,
    adapter_flops,
    epoch_seconds,
    epoch_work,
    extract_tokens_per_second,
    forecast,
    forward_flops,
    run_seconds,
    train_tokens_per_second,
)
from bertvision_stream.stream.plan import StreamPlan

GPUS_PER_NODE = 8
EPOCHS = 10
BLOCK_TOKENS = 8192  # what extract.block_tokens=auto takes on a GPU
STORE_BYTES = 200 * 2**30  # of each node's object store
CODECS: tuple[Codec, ...] = ("bf16", "int8")


@dataclass(frozen=True)
class Gpu:
    """A GPU. Its speed is that of the data sheet, dense, in the dtype that a run takes on it."""

    name: str
    flops_per_second: float
    dtype: str


# From NVIDIA's data sheets. The T4 has no bf16, so that `backbone.dtype=auto` takes fp32 on it.
GPUS = (
    Gpu("T4", 8.1e12, "fp32"),
    Gpu("L4", 121e12, "bf16"),
    Gpu("A100", 312e12, "bf16"),
    Gpu("H100 SXM", 989e12, "bf16"),
)
T4, L4, A100, H100 = GPUS


@dataclass(frozen=True)
class Rows:
    """A task at its published size, and what was counted in a sample of its rows.

    Attributes:
        task: The name of the task.
        train: The published number of training rows (of SQuAD 2.0 the questions).
        validation: The published number of validation rows.
        sample_rows: Rows of the sample.
        sample_examples: Examples that the rows became: of SQuAD 2.0 the windows of questions.
        sample_tokens: Tokens of the examples.
        sample_squares: The sum of the squares of the examples' tokens.
    """

    task: str
    train: int
    validation: int
    sample_rows: int
    sample_examples: int
    sample_tokens: int
    sample_squares: int

    @property
    def rows(self) -> int:
        return self.train + self.validation

    @property
    def examples(self) -> int:
        return round(self.rows * self.sample_examples / self.sample_rows)

    @property
    def tokens(self) -> int:
        """Tokens of an epoch, training and validation together."""
        return round(self.rows * self.example_tokens * self.sample_examples / self.sample_rows)

    @property
    def train_tokens(self) -> int:
        return round(self.tokens * self.train / self.rows)

    @property
    def example_tokens(self) -> float:
        return self.sample_tokens / self.sample_examples

    @property
    def attended(self) -> float:
        """The tokens that a token attends to, on average; see `mean_attended_tokens`."""
        return self.sample_squares / self.sample_tokens

    @property
    def settings(self) -> Task:
        return TASKS[self.task]


# Counted by `python -m benchmarks.scaling --count`, with the vocabulary of the uncased BERTs and
# the tasks' own data.max_length and data.stride: 18,212 + 2,000 rows of QQP, 4,756 + 1,322
# questions of SQuAD 2.0's development set (16 articles).
QQP = Rows("qqp", 363_846, 40_430, 20_212, 20_212, 614_440, 21_726_612)
SQUAD = Rows("squad_v2", 130_319, 11_873, 6_078, 6_284, 1_166_481, 248_035_807)

TASK_NAMES = {"qqp": "QQP", "squad_v2": "SQuAD 2.0"}


@dataclass(frozen=True)
class Case:
    """The rows of a task on a backbone, whose embeddings count as a layer."""

    rows: Rows
    backbone: str
    num_layers: int
    hidden_size: int

    def __str__(self) -> str:
        return f"{TASK_NAMES[self.rows.task]}, {self.backbone.removeprefix('BERT-')}"

    @property
    def intermediate_size(self) -> int:
        return 4 * self.hidden_size

    @property
    def flops(self) -> float:
        """Operations of the forward pass for one token."""
        return forward_flops(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            attended=self.rows.attended,
        )

    @property
    def adapter_flops(self) -> float:
        """Operations of a training step of the default head for one token."""
        return adapter_flops(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            adapter_dim=HeadSettings().adapter_dim,
        )

    @property
    def head_shape(self) -> HeadShape:
        task = self.rows.settings
        return HeadShape(
            self.num_layers, self.hidden_size, task.num_labels, task.max_length, task.per_token
        )

    @property
    def head_parameters(self) -> int:
        """Parameters of the default head."""
        return Head(HeadSettings(), self.head_shape, seed=0).num_parameters

    def block_format(self, codec: Codec) -> BlockFormat:
        return BlockFormat.of(self.head_shape, codec)

    def token_bytes(self, codec: Codec = "bf16") -> int:
        return self.block_format(codec).token_bytes


def _case(rows: Rows, name: str) -> Case:
    layers, hidden_size, _ = KNOWN_SHAPES[f"{name}-uncased"]
    return Case(rows, name.replace("bert", "BERT"), layers + 1, hidden_size)


CASES = tuple(_case(rows, name) for rows in (QQP, SQUAD) for name in ("bert-base", "bert-large"))
QQP_BASE, QQP_LARGE, SQUAD_BASE, SQUAD_LARGE = CASES


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says. What was measured, was measured on one H200, and rounded.

    Attributes:
        utilisation: The share of its data sheet's speed that forward passes reach on a GPU that is
            not fast; assumed.
        extractor_flops_per_second: The most that forward passes reach on the fastest GPU, as a CPU
            has to issue their operations; measured.
        heads_utilisation: The share that the products of heads reach, which are narrow; assumed.
        copy_bytes_per_second: The speed of copies between a GPU and the object store of its node,
            each way; measured.
        step_seconds: The time of a training step without heads, whatever its tokens; measured.
        head_step_seconds: The time that each head adds to a step; measured.
        span_head_step_seconds: The time that each head adds where answers are spans; measured.
    """

    utilisation: float = 0.4
    extractor_flops_per_second: float = 120e12
    heads_utilisation: float = 0.1
    copy_bytes_per_second: float = 10e9
    step_seconds: float = 2e-3
    head_step_seconds: float = 0.6e-3
    span_head_step_seconds: float = 2.2e-3

    def forward_flops_per_second(self, gpu: Gpu) -> float:
        """The speed of an extractor's forward passes on a GPU."""
        return min(gpu.flops_per_second * self.utilisation, self.extractor_flops_per_second)

    def seconds_of_step(self, rows: Rows, heads: int) -> float:
        """The time of a training step of so many heads, besides copies and products."""
        spans = rows.settings.per_token
        each = self.span_head_step_seconds if spans else self.head_step_seconds
        return self.step_seconds + heads * each


ASSUMED = Assumptions()


@dataclass(frozen=True)
class Layout:
    """A run on a cluster: what is trained, and which GPUs work on it."""

    case: Case
    gpu: Gpu
    num_gpus: int = 1
    codec: Codec = "bf16"
    network: float = 100
    heads: int = 1
    trainers: int = 1
    cached: bool = True
    assumed: Assumptions = ASSUMED

    @property
    def nodes(self) -> int:
        return -(-self.num_gpus // GPUS_PER_NODE)

    @property
    def extract_rate(self) -> float:
        """Tokens a second of one extractor."""
        return extract_tokens_per_second(
            forward_flops=self.case.flops,
            flops_per_second=self.assumed.forward_flops_per_second(self.gpu),
            token_bytes=self.case.token_bytes(self.codec),
            copy_bytes_per_second=self.assumed.copy_bytes_per_second,
        )

    @property
    def made_rate(self) -> float:
        """Tokens a second of one extractor if nothing had to be copied to the host."""
        uncopied = replace(self.assumed, copy_bytes_per_second=float("inf"))
        return replace(self, assumed=uncopied).extract_rate

    @property
    def train_rate(self) -> float:
        """Tokens a second of one trainer that has its part of the heads."""
        heads = -(-self.heads // self.trainers)
        assumed, rows = self.assumed, self.case.rows
        return train_tokens_per_second(
            heads=heads,
            adapter_flops=self.case.adapter_flops,
            flops_per_second=self.gpu.flops_per_second * assumed.heads_utilisation,
            token_bytes=self.case.token_bytes(self.codec),
            copy_bytes_per_second=assumed.copy_bytes_per_second,
            step_seconds=assumed.seconds_of_step(rows, heads),
            step_tokens=rows.settings.batch_size * rows.example_tokens,
        )

    @property
    def speeds(self) -> Speeds:
        return Speeds(
            extractors=self.num_gpus,
            extract_tokens_per_second=self.extract_rate,
            trainers=self.trainers,
            train_tokens_per_second=self.train_rate,
            nodes=self.nodes,
            network_bytes_per_second=self.network * GIGABIT_BYTES,
        )

    @property
    def plan(self) -> StreamPlan:
        return _stream_plan(self.case, self.codec, self.nodes, self.num_gpus, self.cached)

    def epoch(self, *, first: bool) -> EpochSeconds:
        return epoch_seconds(epoch_work(self.plan, first=first), self.speeds)

    @property
    def forecast(self) -> Forecast:
        return forecast(self.plan, epochs=EPOCHS)

    @property
    def seconds(self) -> float:
        """The time of all epochs."""
        return run_seconds(self.epoch(first=True), self.epoch(first=False), epochs=EPOCHS)

    @property
    def enough_gpus(self) -> int:
        """The fewest GPUs with which extraction no longer bounds a first epoch."""
        return next(
            n
            for n in range(1, 10**4)
            if replace(self, num_gpus=n).epoch(first=True).bottleneck != "extraction"
        )


FASTEST = Layout(SQUAD_BASE, H100, codec="int8")
"""The layout whose trainer takes more tokens a second than any other here."""


@cache
def _stream_plan(
    case: Case, codec: Codec, nodes: int, num_extractors: int, cached: bool
) -> StreamPlan:
    """A plan of full blocks, with the budget that a run would have."""
    rows, block_format = case.rows, case.block_format(codec)
    num_blocks = -(-rows.tokens // BLOCK_TOKENS)
    num_train = round(num_blocks * rows.train / rows.rows)
    keys = [BlockKey(TRAIN, i) for i in range(num_train)]
    keys += [BlockKey("validation", i) for i in range(num_blocks - num_train)]
    tokens = dict.fromkeys(keys, BLOCK_TOKENS)
    tokens[keys[0]] -= num_blocks * BLOCK_TOKENS - rows.tokens
    sizes = {
        key: block_format.block_bytes(n, round(n / rows.example_tokens))
        for key, n in tokens.items()
    }
    budget = plan_budget(
        sizes,
        keys[num_train:],
        num_train=num_train,
        seed=0,
        settings=StreamSettings(cache="auto" if cached else 0),
        store_bytes=nodes * STORE_BYTES,
        num_nodes=nodes,
        num_extractors=num_extractors,
    )
    return StreamPlan(
        seed=0,
        num_epochs=EPOCHS,
        same_order=False,
        num_train=num_train,
        validation=tuple(keys[num_train:]),
        block_bytes=sizes,
        block_tokens=tokens,
        budget=budget,
    )
