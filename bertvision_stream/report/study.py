"""What `mode=study` finds out: scores by amount of data, by amount of fine-tuning, and by seed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertvision_stream.data.splits import TaskData
from bertvision_stream.report.records import death_notes
from bertvision_stream.report.tables import PREDICTORS, WIDTH, MeanStd, Table
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import main_score
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import read_json
from bertvision_stream.utils.hashing import hash_contents

BERT, HEAD, HEAD_ON_ALL = PREDICTORS["bert"], PREDICTORS["head"], "head on BERT of all rows"
"""The predictors that are compared, each at every fraction of the training rows:

BERT, fine-tuned on these rows; a head that is trained on these rows, on the hidden states of that
BERT; a head that is trained on these rows, on the hidden states of the BERT that was fine-tuned on
the largest fraction.
"""

NEARLY_ALL = 0.95
"""The share of the score with the largest fraction that counts as enough."""

Cell = tuple[float, float]
"""The epochs of fine-tuning and the fraction of the training rows."""


@dataclass(frozen=True)
class Point:
    """One predictor, trained and evaluated once.

    Attributes:
        predictor: `BERT`, `HEAD` or `HEAD_ON_ALL`.
        finetune_epochs: The epochs of fine-tuning of the BERT that it is, or that it reads.
        fraction: The fraction of the training examples that it learned from.
        seed: The seed that drew the examples, and that fine-tuning and head began with.
        examples: The number of these examples.
        scores: The metrics by validation split; empty where it failed.
        failure: Why it failed; empty where it did not.
    """

    predictor: str
    finetune_epochs: float
    fraction: float
    seed: int
    examples: int
    scores: Mapping[str, Mapping[str, float]]
    failure: str = ""


@dataclass(frozen=True)
class StreamUse:
    """One stream: the hidden states of one BERT, and how many heads learned from them.

    Attributes:
        finetune_epochs: The epochs of fine-tuning of the BERT.
        fraction: The fraction of the training examples that the BERT was fine-tuned on and that
            were streamed.
        seed: The seed of everything.
        heads: The number of heads that learned from it.
        tokens_extracted: The number of tokens in all blocks that were made.
        blocks_extracted: The number of blocks that were made.
        blocks_from_cache: The number of blocks that were delivered without making them again.
        finetune_seconds: The wall time of the fine-tuning; 0 where its result was found again.
        stream_seconds: The wall time of the epochs.
        extractors_lost: The number of extractors that died and were replaced.
        deaths: The trainers and streams that died and were started again, one sentence each.
    """

    finetune_epochs: float
    fraction: float
    seed: int
    heads: int
    tokens_extracted: int
    blocks_extracted: int
    blocks_from_cache: int
    finetune_seconds: float
    stream_seconds: float
    extractors_lost: int = 0
    deaths: list[str] = field(default_factory=list)


@dataclass
class Study:
    """A study, finished or on its way.

    Attributes:
        task: The name of the task.
        backbone: The name of the backbone, as the user gave it.
        head: The value of `head.kind`.
        rows: A hash of the rows, which must be the same for the study to go on after an
            interruption.
        points: Everything that was measured.
        streams: Everything that was streamed.
    """

    task: str
    backbone: str
    head: str
    rows: str
    points: list[Point] = field(default_factory=list)
    streams: list[StreamUse] = field(default_factory=list)

    @property
    def fractions(self) -> list[float]:
        """All fractions, ascending."""
        return sorted({point.fraction for point in self.points})

    @property
    def finetune_epochs(self) -> list[float]:
        """All amounts of fine-tuning, ascending."""
        return sorted({point.finetune_epochs for point in self.points})

    @property
    def seeds(self) -> list[int]:
        """All seeds, in the order in which they ran."""
        return list(dict.fromkeys(point.seed for point in self.points))

    def has(self, finetune_epochs: float, fraction: float, seed: int) -> bool:
        """Whether all heads have learned from the stream of a backbone."""
        key = (finetune_epochs, fraction, seed)
        return key in {(s.finetune_epochs, s.fraction, s.seed) for s in self.streams}

    def scores(self, predictor: str) -> dict[Cell, list[float]]:
        """GLUE's mean of metrics and splits, for each seed that did not fail.

        With the largest fraction, and without fine-tuning, both heads are the same head, which is
        trained once.
        """
        largest = max(self.fractions, default=1.0)
        found: dict[Cell, list[float]] = {}
        for point in self.points:
            same = point.fraction == largest or point.finetune_epochs == 0
            also = predictor == HEAD_ON_ALL and point.predictor == HEAD and same
            if (point.predictor == predictor or also) and point.scores:
                cell = (point.finetune_epochs, point.fraction)
                found.setdefault(cell, []).append(main_score(point.scores))
        return found

    def spreads(self, predictor: str) -> dict[Cell, MeanStd]:
        """The mean and the standard deviation of `scores`."""
        return {cell: MeanStd.of(scores) for cell, scores in self.scores(predictor).items()}

    def examples(self, fraction: float) -> int:
        """The number of training examples of a fraction."""
        return next(point.examples for point in self.points if point.fraction == fraction)

    @property
    def failures(self) -> list[str]:
        """One line for each point without scores."""
        return [
            f"{p.predictor}, {p.fraction:g} of the rows, {p.finetune_epochs:g} epochs of "
            f"fine-tuning, seed {p.seed}: {p.failure}"
            for p in self.points
            if p.failure
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of `study.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Study:
        """The study that `to_json` was called on."""
        points = [Point(**point) for point in content["points"]]
        streams = [StreamUse(**stream) for stream in content["streams"]]
        named = {name: content[name] for name in ("task", "backbone", "head", "rows")}
        return cls(**named, points=points, streams=streams)


def read_study(path: Path) -> Study | None:
    """The interrupted study in a file; None where none was begun.

    Raises:
        ConfigError: The file is damaged.
    """
    if not path.is_file():
        return None
    way_out = "Delete it, and the study begins anew."
    content = read_json(path, way_out)
    try:
        return Study.from_json(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}). {way_out}") from error


def rows_fingerprint(data: TaskData) -> str:
    """A hash of all texts and labels."""
    splits = (data.train, *data.validation)
    rows = (part for split in splits for part in (*map(repr, split.texts), split.labels))
    return hash_contents([repr(data.task), *rows])


def score_name(task: Task) -> str:
    """What the one score of a task is, in words."""
    metrics, splits = [*map(task.metric_title, task.metrics)], task.validation_splits
    name = metrics[0] if len(metrics) == 1 else f"mean of {' and '.join(metrics)}"
    return f"{name}, mean of {len(splits)} splits" if len(splits) > 1 else name


def render_study(study: Study, task: Task) -> str:
    """Text for a console."""
    lines = [f"{_title(study)}; {score_name(task)} on validation", ""]
    lines.append(_table(study).text())
    lines += [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in _notes(study)]
    return "\n".join(lines) + "\n"


def render_study_markdown(study: Study, task: Task, command: str, plots: list[Path]) -> str:
    """The content of `study.md`."""
    sections = [
        f"# {_title(study)}",
        f"Scores are {score_name(task)} on validation.",
        _table(study).markdown(),
        "\n".join(f"- {note}" for note in _notes(study)),
        *(f"![{plot.stem.replace('_', ' ')}](plots/{plot.name})" for plot in plots),
        "## Run it again",
        f"```bash\n{command}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _title(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    plural = "s" if len(study.seeds) > 1 else ""
    return f"{study.task}: {study.head} head on {study.backbone}, seed{plural} {seeds}"


def compared(study: Study) -> list[str]:
    """The predictors of a study, without the second head where it always is the first one."""
    shared = any(point.predictor == HEAD_ON_ALL for point in study.points)
    return [BERT, HEAD, *([HEAD_ON_ALL] if shared else [])]


def _table(study: Study) -> Table:
    """A row for each amount of fine-tuning and of data; a column for each predictor."""
    predictors = compared(study)
    # The last one's name is too long for one line.
    names = [name.replace("head on ", "head on\n") for name in predictors]
    spreads = [study.spreads(name) for name in predictors]
    rows = []
    for epochs in study.finetune_epochs:
        for fraction in study.fractions:
            cells = [of_predictor.get((epochs, fraction), "-") for of_predictor in spreads]
            examples = f"{study.examples(fraction):,}"
            rows.append([f"{epochs:g}", f"{fraction:g}", examples, *map(str, cells)])
    return Table(["epochs of\nfine-tuning", "share of\nrows", "rows", *names], rows)


def _notes(study: Study) -> list[str]:
    """What the columns mean, how much data is enough, what was streamed, and what failed."""
    largest = study.fractions[-1]
    notes = [
        "BERT: fine-tuned on these rows, with its own classifier; head: trained on the same rows, "
        "on the hidden states of that BERT"
    ]
    if HEAD_ON_ALL in compared(study):
        notes.append(
            f"{HEAD_ON_ALL}: trained on these rows, on a BERT that was fine-tuned on "
            f"{'all' if largest == 1 else f'{largest:g} of the'} rows, and so has seen more labels "
            f"than its head"
        )
    if 0 in study.finetune_epochs:
        notes.append("0 epochs: BERT as it came, with a score only if it came with a classifier")
    if len(study.seeds) > 1:
        notes.append(
            "±: sample standard deviation over the seeds; each draws its own rows, and seeds "
            "fine-tuning and head"
        )
    notes += _enough(study)
    heads = sum(stream.heads for stream in study.streams)
    tokens = sum(stream.tokens_extracted for stream in study.streams)
    notes.append(
        f"{heads} heads learned from {len(study.streams)} streams, one for each BERT: {tokens:,} "
        f"tokens extracted, as many as for one head on each"
    )
    notes += death_notes(
        sum(stream.extractors_lost for stream in study.streams),
        [death for stream in study.streams for death in stream.deaths],
    )
    notes += [f"failed: {failure}" for failure in study.failures]
    return notes


def _enough(study: Study) -> list[str]:
    """How much data each predictor needs for most of its score, by amount of fine-tuning.

    Nothing is said of a predictor whose score does not grow with the rows beyond what chance does.
    """
    if len(study.fractions) < 2:
        return []
    largest, notes = study.fractions[-1], []
    for epochs in study.finetune_epochs:
        enough, unclear = [], []
        for name in compared(study):
            if name == HEAD_ON_ALL and epochs == 0:  # It is the same head as HEAD.
                continue
            spreads = {f: s for (e, f), s in sorted(study.spreads(name).items()) if e == epochs}
            if len(spreads) < 2 or largest not in spreads:
                continue
            if not _grows(list(spreads.values())):
                unclear.append(name)
            elif (all_rows := spreads[largest].mean) > 0:
                # A share that reaches it where a larger one does not has reached it by chance.
                lacking = [f for f, s in spreads.items() if s.mean < NEARLY_ALL * all_rows]
                least = min(f for f in spreads if f > max(lacking, default=0))
                enough.append(f"{name} {least:g}{'' if lacking else ' or less'}")
        before = f"{epochs:g} epochs of fine-tuning: "
        if enough:
            one = len(study.seeds) == 1
            notes.append(
                f"{before}the smallest share of the rows that reaches {NEARLY_ALL:.0%} of the "
                f"score with {largest:g} is for {', '.join(enough)}"
                + ("; this is of one seed, so chance may have a part in it" if one else "")
            )
        if unclear:
            notes.append(
                f"{before}how much data is enough cannot be said for {', '.join(unclear)}, whose "
                f"score does not grow with the rows beyond chance"
            )
    return notes


def _grows(spreads: Sequence[MeanStd]) -> bool:
    """Whether the last score is above the first by more than chance moves scores.

    Chance is seen where more rows score lower, and in the deviations over the seeds.

    Args:
        spreads: The scores with ascending fractions of the rows, at least two.
    """
    means = [spread.mean for spread in spreads]
    drop = max(a - b for i, a in enumerate(means[:-1]) for b in means[i + 1 :])
    variances = [(s.deviation or 0.0) ** 2 / s.seeds for s in (spreads[0], spreads[-1])]
    # Two standard errors of a difference of means.
    return means[-1] - means[0] > max(drop, 2 * math.sqrt(sum(variances)))
