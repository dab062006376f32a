"""Spans on a Ray cluster: the stream against one process, and a whole job on a few rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import run_here
from jobs import make_job
from searches import assert_searched
from span_rows import generated_rows, wordpiece, write_squad
from span_tasks import MAX_LENGTH, SQUAD, VOCAB, make_corpus, settings_of
from squad_rules import official_score
from streams import assert_bounded, assert_same_head, nothing_is_left  # noqa: F401
from tiny import CPU, HIDDEN_SIZE, NUM_LAYERS, one_thread, tiny_classifier  # noqa: F401
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from actors.engine import RayEngine
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import Backbone, BackboneWeights
from bertvision_stream.models.extract import BlockExtractor, validation_logits
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.stream.blocks import BlockFormat
from bertvision_stream.stream.placement import ClusterResources, Placement
from bertvision_stream.stream.plan import plan_stream
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.objectives.factory import make_objective

pytestmark = pytest.mark.ray

WIDE = 128  # for blocks above 100 KiB: Ray sends smaller ones past its object store


def test_streamed_windows_have_the_numbers_of_one_process(cluster: ClusterResources) -> None:
    corpus = make_corpus(150, 60)
    weights = BackboneWeights.of(tiny_classifier(per_token=True, hidden_size=WIDE, **VOCAB))
    settings = settings_of(
        **{"extract.codec": "int8", "backbone.dtype": "fp32", "stream.cache": "300KiB"}
    )
    block_format = BlockFormat(NUM_LAYERS, WIDE, 2, "int8", per_token=True)
    shape = HeadShape(NUM_LAYERS, WIDE, 2, MAX_LENGTH, per_token=True)
    plan = plan_stream(
        settings,
        corpus,
        block_format,
        num_extractors=2,
        num_nodes=cluster.num_nodes,
        store_bytes=cluster.free_store_bytes(0),
    )
    assert 0 < len(plan.budget.pinned) < len(plan.block_bytes)
    placement = Placement(2, 0.5, 0, 1, 0, 1)
    job = make_job(settings, SQUAD, corpus, weights, shape, plan=plan, placement=placement)
    outcome = RayEngine().run(job, {"head": HeadJob(settings)})
    assert_bounded(outcome, plan)
    backbone = Backbone(weights.build(), device=CPU, dtype=torch.float32)
    training = make_training(corpus, SQUAD, {"head": HeadJob(settings)}, shape, device=CPU)
    for _ in train_in_process(BlockExtractor(backbone, corpus, "int8"), training):
        pass
    assert_same_head(outcome.heads["head"], training.results()["head"])
    bert = validation_logits(backbone, corpus, make_objective(SQUAD))["validation"]
    assert (outcome.bert_logits["validation"] == bert).all()


def test_a_search_and_the_training_of_the_best_from_rows_to_results(
    cluster: ClusterResources, tmp_path: Path
) -> None:
    train = generated_rows(120, seed=0)
    validation = generated_rows(40, seed=1, prefix="v")
    rows = write_squad(tmp_path / "rows", train, validation)
    tiny_classifier(**VOCAB).save_pretrained(tmp_path / "encoder")
    wordpiece().save_pretrained(tmp_path / "encoder")

    keys = ["task=squad_v2", "backbone=encoder", f"data.max_length={MAX_LENGTH}"]
    search = [
        f"data.path={rows.name}",
        "mode=search",
        "search.num_trials=2",
        "search.searcher=random",
        "search.space.head.kind=[adapter_pooler,scalar_mix]",
        "train.epochs=2",
        "train.num_trainers=1",
        "extract.num_extractors=1",
        "finetune.epochs=0.5",
        "stream.cache=64KiB",
        "evaluate.ensemble=max",
        "run_name=one",
    ]
    done = run_here(tmp_path, *keys, *search)
    assert done.returncode == 0, done.stderr
    assert "train: 120 questions in " in done.stdout
    assert "Questions with and without an answer" in done.stdout
    results = tmp_path / "outputs" / "squad_v2" / "one"
    metrics = json.loads((results / "metrics.json").read_text())
    split = metrics["splits"]["validation"]
    assert (split["examples"], metrics["train"]["examples"]) == (40, 120)
    assert metrics["stream"]["spilled_bytes"] == metrics["stream"]["fallback_bytes"] == 0
    assert metrics["stream"]["peak_bytes"] <= metrics["stream"]["budget_bytes"]
    assert_searched(results, "head")
    # The fine-tuning before the search is the run's own.
    assert "fine-tuning: found again in outputs/backbones/squad_v2-" in done.stdout
    assert metrics["seconds"]["stages"]["fine-tuning"] == metrics["seconds"]["finetune"] > 0
    assert not metrics["finetune"]["reused"]

    # Scored again from the official files, by the rules as the tests have them.
    golds = {row["id"]: row["answers"]["text"] for row in validation}
    for name, suffix in (("head", ""), ("bert", "_bert"), ("ensemble", "_ensemble")):
        predictions = json.loads((results / f"predictions{suffix}.json").read_text())
        scores = [official_score(predictions[key], gold) for key, gold in golds.items()]
        for i, metric in enumerate(("exact", "f1")):
            mean = sum(score[i] for score in scores) / len(scores)
            assert split[name][metric] == pytest.approx(mean)

    # The backbone and the head are there to be used.
    (backbone,) = (tmp_path / "outputs" / "backbones").iterdir()
    model = AutoModelForQuestionAnswering.from_pretrained(backbone)
    assert model.config.architectures == ["BertForQuestionAnswering"]
    exported = AutoModelForQuestionAnswering.from_pretrained(results / "model")
    shape = HeadShape(NUM_LAYERS, HIDDEN_SIZE, 2, MAX_LENGTH, per_token=True)
    assert exported.head.shape == shape
    tokens = AutoTokenizer.from_pretrained(results / "model")("who won?", "rollo won")
    output = exported(input_ids=torch.tensor([tokens["input_ids"]]))
    assert output.start_logits.shape == output.backbone_end_logits.shape == (1, len(tokens[0]))
    assert (results / "plots" / "thresholds_validation.png").exists()

    # Scored again, the same rows have the same answers.
    predict = ["mode=predict", "run=outputs/squad_v2/one", f"data.path={rows.name}"]
    again = run_here(tmp_path, *predict, "run_name=two")
    assert again.returncode == 0, again.stderr
    for name in ("predictions.json", "predictions_bert.json", "predictions_ensemble.json"):
        first, second = (
            json.loads((results.parent / run_name / name).read_text())
            for run_name in ("one", "two")
        )
        assert first == second

    train[3]["answers"] = {"text": ["nobody"], "answer_start": [0]}
    write_squad(tmp_path / "bad", train, validation)
    refused = run_here(tmp_path, *keys, "data.path=bad")
    assert refused.returncode == 2
    assert (
        "1 row cannot be used:\n  q3: its answer 'nobody' is not at character 0" in refused.stderr
    )
    assert "Traceback" not in refused.stderr
