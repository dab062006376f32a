"""Studies: nested rows, heads of all fractions on one stream, tables, plots, going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import numpy as np
import pytest
import torch
from span_rows import generated_rows, split_of, wordpiece
from span_tasks import SQUAD
from tiny import CPU, HIDDEN_SIZE, MAX_LENGTH, NUM_LAYERS, save_model, task_settings, tiny_tokenizer

from actors.engine import RayEngine
from bertvision_stream.data.splits import Split, TaskData, nested_sample, take_fraction
from bertvision_stream.data.tokenize import tokenize, tokenize_splits
from bertvision_stream.data.windows import tokenize_windows
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.run_folder import open_run_folder
from bertvision_stream.report.study import (
    BERT,
    HEAD,
    HEAD_ON_ALL,
    Point,
    StreamUse,
    Study,
    read_study,
    render_study,
    render_study_markdown,
    rows_fingerprint,
)
from bertvision_stream.report.study_plots import _series, write_study_plots
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.errors import ConfigError

TASK = TASKS["cola"]
NUM_ROWS = {"train": 60, "validation": 30}


def make_data() -> TaskData:
    """Sentences of the tiny tokenizer's words; those with early ones are acceptable."""
    splits = {}
    for seed, (name, count) in enumerate(NUM_ROWS.items()):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, count)
        words = [rng.integers(0, 25, rng.integers(3, 12)) + 25 * (1 - label) for label in labels]
        texts = [(" ".join(f"w{word}" for word in row),) for row in words]
        splits[name] = Split(name, texts, labels)
    return TaskData(TASK, splits["train"], (splits["validation"],), ())


# --- rows


@pytest.mark.parametrize("seed", [0, 5])
def test_samples_are_nested_and_those_of_a_run(seed: int):
    data = make_data()
    assert take_fraction(data, fraction=1.0, seed=seed) is data
    texts: set[tuple[str, ...]] = set()
    for fraction in (0.02, 0.1, 0.5):
        part = take_fraction(data, fraction=fraction, seed=seed)
        rows = nested_sample(60, fraction=fraction, seed=seed)
        assert part.train.texts == [data.train.texts[i] for i in rows]
        assert (part.train.labels == data.train.labels[rows]).all()
        assert part.validation == data.validation
        assert texts <= {*part.train.texts}
        texts = {*part.train.texts}


def test_tokens_of_the_same_rows_are_made_once():
    data = make_data()
    settings = task_settings("cola", f"data.max_length={MAX_LENGTH}").data
    made = [tokenize_splits(data, tiny_tokenizer(), settings, 64) for _ in range(2)]
    assert made[0] is made[1]
    shorter = settings.model_copy(update={"max_length": 8})
    assert tokenize_splits(data, tiny_tokenizer(), shorter, 64)[TRAIN].lengths.max() == 8
    other = take_fraction(data, fraction=0.5, seed=1)
    store = tokenize_splits(other, tiny_tokenizer(), settings, 64)[TRAIN]
    assert (store.input_ids == tokenize(other.train, tiny_tokenizer(), MAX_LENGTH).input_ids).all()


def test_questions_bring_all_their_windows():
    split = split_of(generated_rows(40, seed=3), "train")
    data = TaskData(SQUAD, split, (), ())

    def windows(of: TaskData) -> Any:
        options = {"max_length": 32, "stride": 8, "keep_layout": False}
        return tokenize_windows(of.train, wordpiece(), **cast(Any, options))

    store = windows(data)
    assert store.num_examples > len(split), "some have several"
    sample = nested_sample(40, fraction=0.3, seed=9)
    small = windows(take_fraction(data, fraction=0.3, seed=9))
    rows = store.rows_of(sample)
    assert [store.tokens(i).tolist() for i in rows] == [
        small.tokens(i).tolist() for i in range(small.num_examples)
    ]
    assert (store.labels[rows] == small.labels).all()


def test_other_rows_have_another_fingerprint():
    data = make_data()
    assert rows_fingerprint(data) == rows_fingerprint(make_data())
    assert rows_fingerprint(take_fraction(data, fraction=0.5, seed=1)) != rows_fingerprint(data)
    flipped = replace(data, train=replace(data.train, labels=1 - data.train.labels))
    assert rows_fingerprint(flipped) != rows_fingerprint(data)


# --- tables and plots


def value(predictor: str, epochs: float, fraction: float, seed: int) -> float:
    base = {BERT: 0.1, HEAD: 0.2, HEAD_ON_ALL: 0.3}[predictor]
    return base + 0.1 * epochs + 0.3 * fraction**0.5 + 0.01 * seed


def make_study(seeds: tuple[int, ...] = (1, 2, 3)) -> Study:
    """Of 1,000 rows; BERT as it is, and after 0.5 epochs."""
    study = Study("cola", "minilm", "adapter_pooler", "abc")
    for seed in seeds:
        for fraction in (1.0, 0.1, 0.01):
            for epochs in (0.0, 0.5):
                names = [HEAD]
                if epochs:
                    names += [BERT, *([HEAD_ON_ALL] if fraction < 1 else [])]
                for name in names:
                    scores = {"validation": {"matthews": value(name, epochs, fraction, seed)}}
                    rows = round(1000 * fraction)
                    study.points.append(Point(name, epochs, fraction, seed, rows, scores))
        study.streams.append(StreamUse(0.5, 1.0, seed, 3, 1000, 10, 20, 1.0, 2.0))
    return study


def test_a_study_is_read_as_it_was_written(tmp_path: Path):
    study = make_study()
    path = tmp_path / "study.json"
    assert read_study(path) is None
    path.write_text(json.dumps(study.to_json() | {"command": "something"}, allow_nan=False))
    assert read_study(path) == study
    for damaged in ("", "[]", "{}", '{"points": 3}', '{"points": [{}], "streams": []}'):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match="Delete it, and the study begins anew"):
            read_study(path)
    assert study.has(0.5, 1.0, 2)
    assert not study.has(0.5, 0.1, 2)


def test_scores_are_means_over_seeds_and_failures_are_told():
    study = make_study()
    failed = replace(study.points[0], scores={}, failure="the loss became nan")
    study.points[0] = failed
    assert (failed.predictor, failed.finetune_epochs, failed.fraction) == (HEAD, 0.0, 1.0)
    values = [value(HEAD, 0.5, 0.1, seed) for seed in (1, 2, 3)]
    spread = study.spreads(HEAD)[0.5, 0.1]
    assert (spread.mean, spread.deviation) == pytest.approx((fmean(values), stdev(values)))
    assert study.spreads(HEAD)[0.0, 1.0].seeds == 2
    assert (0.0, 0.1) not in study.spreads(BERT)
    # Where they are one and the same head:
    assert study.scores(HEAD_ON_ALL)[0.5, 1.0] == study.scores(HEAD)[0.5, 1.0]
    assert study.scores(HEAD_ON_ALL)[0.0, 0.1] == study.scores(HEAD)[0.0, 0.1]
    text = render_study(study, TASK)
    assert "failed: head, 1 of the rows, 0 epochs of fine-tuning, seed 1: the loss became" in text


def test_a_study_says_which_actors_of_its_streams_died():
    study = make_study()
    assert "died" not in render_study(study, TASK)
    study.streams[0] = replace(study.streams[0], extractors_lost=2, deaths=["a head trainer died"])
    shown = render_study(Study.from_json(study.to_json()), TASK)
    assert "2 extractors died and were replaced" in shown
    assert "a head trainer died; it was started again" in shown


def test_the_table():
    text = render_study(make_study(), TASK)
    assert max(map(len, text.splitlines())) <= 100
    (row,) = [line for line in text.splitlines() if line.startswith("0.5 ") and " 0.01 " in line]
    cells = row.split("  ")
    means = [fmean(value(name, 0.5, 0.01, s) for s in (1, 2, 3)) for name in (BERT, HEAD)]
    assert [float(cell.split()[0]) for cell in cells if "±" in cell][:2] == pytest.approx(
        means, abs=5e-5
    )
    (untrained,) = [ln for ln in text.splitlines() if ln.startswith("0 ") and " 0.01 " in ln]
    assert untrained.split()[3] == "-"
    # 0.6 of 0.5 + 0.3: 0.37 with a hundredth, 0.435 with a tenth
    assert "reaches 95% of the score with 1 is for" in " ".join(text.split())
    assert "9 heads learned from 3 streams" in text
    markdown = render_study_markdown(make_study((4,)), TASK, "the command", [Path("p/study_x.png")])
    assert "![study x](plots/study_x.png)" in markdown
    assert "seed 4" in markdown
    assert "±" not in markdown


def enough(*points: tuple[float, tuple[float, ...]]) -> str:
    """What is said of a head with, for each fraction, a score by seed."""
    study = Study("cola", "minilm", "cls", "abc")
    for fraction, values in points:
        for seed, score in enumerate(values):
            scores = {"validation": {"matthews": score}}
            study.points.append(Point(HEAD, 1.0, fraction, seed, round(100 * fraction), scores))
    return " ".join(render_study(study, TASK).split())


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (((0.1, (0.5,)), (0.3, (0.76,)), (1.0, (0.8,))), "is for head 0.3; this is of one seed"),
        (((0.1, (0.5, 0.5)), (0.3, (0.76, 0.78)), (1.0, (0.8, 0.8))), "is for head 0.3 "),
        (((0.1, (0.77, 0.77)), (1.0, (0.8, 0.8))), "is for head 0.1 or less "),
        # A share that reaches it by chance: a larger one does not.
        (((0.1, (0.5,)), (0.2, (0.77,)), (0.3, (0.7,)), (1.0, (0.8,))), "is for head 1;"),
    ],
)
def test_how_much_is_enough(points: Any, said: str):
    text = enough(*points)
    assert f"reaches 95% of the score with 1 {said}" in text
    assert "cannot be said" not in text


@pytest.mark.parametrize(
    "points",
    [
        ((0.2, (0.56,)), (0.5, (0.55,)), (1.0, (0.52,))),
        ((0.2, (0.55,)), (1.0, (0.55,))),
        ((0.2, (0.55,)), (0.5, (0.58,)), (0.7, (0.54,)), (1.0, (0.57,))),
        ((0.2, (0.5, 0.6, 0.55)), (1.0, (0.6, 0.5, 0.62))),
    ],
)
def test_of_scores_that_do_not_grow_beyond_chance_nothing_is_concluded(points: Any):
    text = enough(*points)
    assert "smallest share" not in text
    assert "how much data is enough cannot be said for head" in text


def test_plots(tmp_path: Path):
    names = [path.name for path in write_study_plots(make_study(), TASK, tmp_path)]
    assert names == ["study_fractions_0.png", "study_fractions_0.5.png", "study_finetuning.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    # What is drawn once at least in each: the second head only where it is another one.
    drawn = {"0": [HEAD], "0.5": [BERT, HEAD, HEAD_ON_ALL]}
    for epochs, names in drawn.items():
        assert [*_series(make_study(), lambda _, f: f, epochs=float(epochs))] == names
    one = make_study()
    one.points = [p for p in one.points if p.finetune_epochs == 0.5 and p.predictor != HEAD_ON_ALL]
    files = write_study_plots(one, TASK, tmp_path / "one")
    assert [path.name for path in files] == ["study_fractions.png"]
    one.points = [p for p in one.points if p.fraction == 1]
    assert write_study_plots(one, TASK, tmp_path / "none") == []


# --- from rows to results, on a cluster


@pytest.mark.ray
def test_heads_of_all_fractions_learn_from_one_stream(tmp_path: Path, cluster: Any) -> None:
    from bertvision_stream.heads.shape import HeadShape
    from bertvision_stream.models.backbone import Backbone
    from bertvision_stream.models.extract import BlockExtractor, validation_logits
    from bertvision_stream.models.job import Job
    from bertvision_stream.models.prepare import FinetuneResult
    from bertvision_stream.modes.local import LocalEngine, train_in_process
    from bertvision_stream.modes.study import run_study, subset_rows
    from bertvision_stream.stream.corpus import Corpus
    from bertvision_stream.training.head_job import HeadJob
    from bertvision_stream.training.head_training import make_training
    from bertvision_stream.training.objectives.factory import make_objective

    save_model(tmp_path / "encoder")
    settings = task_settings(
        "cola",
        "mode=study",
        "study.fractions=[0.3,1]",
        "study.finetune_epochs=[0,1]",
        "study.seeds=[7]",
        f"backbone={tmp_path / 'encoder'}",
        f"output_dir={tmp_path}",
        f"data.max_length={MAX_LENGTH}",
        "train.epochs=2",
        "backbone.dtype=fp32",
        "extract.codec=fp32",
        "train.precision=fp32",
        "train.stack_heads=false",
        "extract.num_extractors=1",
    )
    data = make_data()
    parts = [(1.0, 0.0), (1.0, 1.0), (0.3, 1.0)]  # no stream of BERT as it is for fewer rows
    jobs: list[Job] = []

    class InterruptedEngine(RayEngine):
        def run(self, job: Job, *args: Any, **options: Any) -> StreamOutcome:
            if len(jobs) == interrupted_after:
                raise KeyboardInterrupt
            jobs.append(job)
            return super().run(job, *args, **options)

        def fine_tune(self, *args: Any) -> FinetuneResult:
            return LocalEngine().fine_tune(*args)  # Ray Train takes long to start

    def study_of(rows: TaskData, *, resume: bool) -> Study:
        path = tmp_path / "checkpoints" / "study.json"
        inputs = TaskInputs(settings, rows, str(tmp_path / "encoder"))
        return run_study(inputs, path, engine=InterruptedEngine(), resume=resume)

    interrupted_after: int | None = 2
    with pytest.raises(KeyboardInterrupt):
        study_of(data, resume=False)
    interrupted_after = None
    study = study_of(data, resume=True)
    assert len(jobs) == len(parts), "what was finished is not done again"
    assert [(s.fraction, s.finetune_epochs) for s in study.streams] == parts
    assert [stream.heads for stream in study.streams] == [2, 2, 1]
    shape = HeadShape(NUM_LAYERS, HIDDEN_SIZE, 2, MAX_LENGTH)
    expected = {}
    for job, stream, (fraction, epochs) in zip(jobs, study.streams, parts, strict=True):
        # Everything is cached: what one head needs is extracted, once, for all heads.
        assert stream.tokens_extracted == sum(s.num_tokens for s in job.corpus.stores.values())
        rows = take_fraction(data, fraction=fraction, seed=7)
        stores = {
            split.name: tokenize(split, tiny_tokenizer(), MAX_LENGTH)
            for split in (rows.train, *rows.validation)
        }
        corpus = Corpus.pack(stores, block_tokens=job.block_tokens, seed=7)
        extractor = BlockExtractor(
            Backbone(job.backbone.weights.build(), device=CPU, dtype=torch.float32), corpus, "fp32"
        )
        objective = make_objective(TASK)
        logits = validation_logits(extractor.backbone, corpus, objective)
        expected[BERT, epochs, fraction] = objective.metrics_by_split(logits, stores)
        for share in {fraction, 0.3}:
            own = share == fraction
            subset = None if own else subset_rows(job, 60, share)[0]
            head = settings.model_copy(
                update={
                    "seed": 7,
                    "head": job.settings.head,
                    "data": settings.data.model_copy(update={"train_fraction": share}),
                }
            )
            training = make_training(
                corpus, TASK, {"head": HeadJob(head, subset)}, shape, device=CPU
            )
            for _ in train_in_process(extractor, training):
                pass
            scores = objective.metrics_by_split(training.results()["head"].logits, stores)
            name = HEAD if own or not epochs else HEAD_ON_ALL
            expected[name, epochs, share] = scores
    found = {(p.predictor, p.finetune_epochs, p.fraction): p.scores for p in study.points}
    assert found == expected
    assert {p.fraction: p.examples for p in study.points} == {1.0: 60, 0.3: 18}

    # Nor is anything of a study that is whole.
    assert study_of(data, resume=True) == study
    assert len(jobs) == len(parts)
    with pytest.raises(ConfigError, match="its rows were others"):
        study_of(take_fraction(data, fraction=0.5, seed=1), resume=True)


# --- its folder


def test_a_finished_study_is_a_finished_run(tmp_path: Path):
    argv = ["mode=study", "study.fractions=[0.1,1]", f"output_dir={tmp_path}", "run_name=one"]
    with open_run_folder(task_settings("cola", *argv)) as folder:
        pass
    assert not open_run_folder(task_settings("cola", *argv, "resume=true")).finished
    (folder.path / "study.json").write_text("{}")
    assert open_run_folder(task_settings("cola", *argv, "resume=true")).finished
    with pytest.raises(ConfigError, match="holds the results of a finished run"):
        open_run_folder(task_settings("cola", *argv))
    other = [*argv, "study.seeds=[1,2]", "resume=true"]
    with pytest.raises(ConfigError, match=r"study.seeds: \[42\] then, \[1, 2\] now"):
        open_run_folder(task_settings("cola", *other))
