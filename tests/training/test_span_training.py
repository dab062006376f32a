"""Backbones, heads and their training where every token has logits, against plain torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from span_tasks import MAX_LENGTH, SQUAD, VOCAB, make_corpus, settings_of
from test_checkpoint import assert_same_training
from test_fit import matrices_and_vectors, rate_of
from tiny import (  # noqa: F401
    CPU,
    HIDDEN_SIZE,
    MODEL_TYPES,
    NUM_LAYERS,
    RandomExtractor,
    one_thread,
    task_settings,
    tiny_classifier,
    tiny_tokenizer,
)
from transformers import AutoModelForQuestionAnswering

import bertvision_stream.models.finetune as finetune_module
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.data.windows import WindowStore
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape, hidden_shape
from bertvision_stream.models.backbone import (
    Backbone,
    BackboneWeights,
    load_classifier,
    weight_bytes,
)
from bertvision_stream.models.extract import BlockExtractor, validation_logits
from bertvision_stream.models.finetune import FinetuneOptions, Worker, finetune
from bertvision_stream.modes.local import train_in_process
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockFormat, BlockKey, epoch_order, row_order
from bertvision_stream.stream.codecs import EncodedBlock, encode
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.checkpoint import load_checkpoint, save_checkpoint
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import HeadTraining, make_training
from bertvision_stream.training.losses import span_loss
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.training.objectives.squad_scoring import exact_and_f1

SHAPE = HeadShape(NUM_LAYERS, HIDDEN_SIZE, 2, MAX_LENGTH, per_token=True)


def window(store: TokenStore, i: int) -> slice:
    return slice(int(store.offsets[i]), int(store.offsets[i + 1]))


# Backbones


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_packed_pass_equals_transformers_window_by_window(model_type: str, tmp_path: Path):
    tiny_classifier(model_type, per_token=True, **VOCAB).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    oracle = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    model, is_trained = load_classifier(str(tmp_path), num_labels=2, per_token=True)
    assert is_trained
    weights = BackboneWeights.of(model)
    assert weight_bytes(model.config, per_token=True) == sum(
        array.nbytes for array in weights.arrays.values()
    )
    corpus = make_corpus()
    store = corpus.stores["validation"]
    backbone = Backbone(weights.build(), device=CPU, dtype=torch.float32)
    backbone.micro_batch_tokens = 100
    found = validation_logits(backbone, corpus, make_objective(SQUAD))["validation"]
    assert found.shape == (store.num_tokens, 2)
    for i in range(store.num_examples):
        inputs = {"input_ids": torch.tensor(store.tokens(i)[None].astype(np.int64))}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            types = store.token_type_ids[window(store, i)]
            inputs["token_type_ids"] = torch.tensor(types[None].astype(np.int64))
        with torch.no_grad():
            output = oracle(**inputs)
        expected = torch.stack([output.start_logits[0], output.end_logits[0]], dim=1)
        torch.testing.assert_close(
            torch.from_numpy(found[window(store, i)]), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("codec", ["bf16", "int8", "fp32"])
def test_blocks_have_the_bytes_that_were_planned(codec: Codec):
    corpus = make_corpus()
    model = tiny_classifier(per_token=True, **VOCAB)
    extractor = BlockExtractor(Backbone(model, device=CPU, dtype=torch.float32), corpus, codec)
    block_format = BlockFormat(*hidden_shape(model.config), 2, codec, per_token=True)
    for block in (*corpus.blocks[TRAIN], *corpus.blocks["validation"]):
        encoded = extractor.extract(block.key)
        assert encoded.logits.shape == (block.num_tokens, 2)
        assert encoded.nbytes == block_format.block_bytes(block.num_tokens, block.num_examples)


def test_a_new_question_answering_layer_is_untrained_and_made_by_the_seed(tmp_path: Path):
    tiny_classifier().save_pretrained(tmp_path)  # it has a layer of another kind
    layers = []
    for seed in (1, 1, 2):
        model, is_trained = load_classifier(str(tmp_path), num_labels=2, per_token=True, seed=seed)
        assert not is_trained
        layers.append(model.get_parameter("qa_outputs.weight"))
    assert torch.equal(layers[0], layers[1])
    assert not torch.equal(layers[0], layers[2])


# Losses


def test_the_loss_is_transformers_own_over_the_windows_own_tokens():
    store = make_corpus().stores[TRAIN]
    model = tiny_classifier(per_token=True, **VOCAB)
    packed, expected = [], []
    for i in range(12):
        inputs = torch.tensor(store.tokens(i)[None].astype(np.int64))
        first, last = (torch.tensor([int(p)]) for p in store.labels[i])
        output = model(inputs, start_positions=first, end_positions=last)
        packed.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=1))
        expected.append(output.loss)
    logits, labels = torch.cat(packed), torch.from_numpy(store.labels[:12])
    lengths = torch.from_numpy(store.lengths[:12])
    assert len(set(lengths.tolist())) > 1  # or else nothing is padded
    losses = span_loss(logits, labels, lengths, "none")
    torch.testing.assert_close(losses, torch.stack(expected))
    torch.testing.assert_close(span_loss(logits, labels, lengths), torch.stack(expected).mean())
    assert torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()


OPTIONS = FinetuneOptions(epochs=1.0, lr=1e-3, batch_size=8, seed=42, dtype="fp32")


@pytest.mark.parametrize("world_size", [1, 3])
def test_fine_tuning_has_the_gradient_of_transformers_own_loss(
    monkeypatch: pytest.MonkeyPatch, world_size: int
):
    monkeypatch.setattr(finetune_module, "MAX_GRAD_NORM", math.inf)
    store = make_corpus().stores[TRAIN]
    one_step = dataclasses.replace(OPTIONS, epochs=1 / store.num_examples)
    rows = next(iter(finetune_module.batch_order(store.lengths, one_step, 0)))
    oracle = tiny_classifier(per_token=True, **VOCAB)
    losses = []
    for i in rows:
        types = store.token_type_ids[window(store, i)][None].astype(np.int64)
        output = oracle(
            torch.tensor(store.tokens(i)[None].astype(np.int64)),
            token_type_ids=torch.tensor(types),
            start_positions=torch.tensor([int(store.labels[i, 0])]),
            end_positions=torch.tensor([int(store.labels[i, 1])]),
        )
        losses.append(output.loss)
    torch.stack(losses).mean().backward()
    found = []
    for rank in range(world_size):
        model = tiny_classifier(per_token=True, **VOCAB)
        worker = Worker(rank, world_size)
        finetune(model, store, make_objective(SQUAD), one_step, device=CPU, worker=worker)
        found.append([p.grad for p in model.parameters()])
    for *shares, parameter in zip(*found, oracle.parameters(), strict=True):
        torch.testing.assert_close(
            torch.stack(shares).mean(dim=0), parameter.grad, rtol=1e-4, atol=1e-6
        )


# Training


class SpanExtractor(RandomExtractor):
    """States in which start and end stand out, for a head to learn."""

    def hidden(self, split: str, row: int) -> torch.Tensor:
        store = self.corpus.stores[split]
        generator = torch.Generator().manual_seed(row + 10_000 * (split == TRAIN))
        shape = (int(store.lengths[row]), NUM_LAYERS, HIDDEN_SIZE)
        hidden = torch.randn(shape, generator=generator)
        first, last = store.labels[row]
        hidden[first, 1, :4] += 4
        hidden[last, -1, 4:8] += 4
        return hidden

    def bert_logits(self, split: str, row: int) -> torch.Tensor:
        """fp32 [S, 2] of one window."""
        generator = torch.Generator().manual_seed(row)
        return torch.randn(int(self.corpus.stores[split].lengths[row]), 2, generator=generator)


@pytest.mark.parametrize("batch_size", [7, 16])
def test_training_equals_a_plain_loop_bit_for_bit(batch_size: int):
    corpus = make_corpus()
    extractor, store = SpanExtractor(corpus), corpus.stores[TRAIN]
    settings = settings_of(**{"train.batch_size": batch_size})
    training = make_training(corpus, SQUAD, {"head": HeadJob(settings)}, SHAPE, device=CPU)
    records = [records["head"] for records in train_in_process(extractor, training)]

    head = Head(settings.head, SHAPE, seed=settings.seed)
    matrices, vectors = matrices_and_vectors(head)
    decay = settings.train.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    total = 3 * math.ceil(store.num_examples / batch_size)
    step = 0
    for epoch in range(3):
        rows: list[int] = []
        for index in epoch_order(len(corpus.blocks[TRAIN]), seed=1, epoch=epoch):
            block = corpus.blocks[TRAIN][index]
            rows += block.example_ids[row_order(block, seed=1, epoch=epoch)].tolist()
        assert sorted(rows) == list(range(store.num_examples))
        loss_sum = 0.0
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            lengths = torch.from_numpy(store.lengths[batch])
            logits = head(torch.cat([extractor.hidden(TRAIN, row) for row in batch]), lengths)
            labels = torch.from_numpy(store.labels[batch])
            loss = span_loss(logits, labels, lengths)
            head.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = rate_of(settings, step, total)
            optimizer.step()
            step += 1
            loss_sum += loss.item() * len(batch)
        assert records[epoch].loss == loss_sum / store.num_examples
    result = training.results()["head"]
    for name, tensor in head.state_dict().items():
        assert torch.equal(result.state[name], tensor), name
    assert records[-1].loss < records[0].loss / 2

    # What it is judged by: logits of each window where its tokens are, and the official scores.
    validation = corpus.stores["validation"]
    assert isinstance(validation, WindowStore)
    layout = validation.layout
    assert layout is not None
    losses, scores = [], []
    for q in range(layout.num_questions):
        spans, nulls = [(-math.inf, 0, 0)], []
        for w in range(layout.question_offsets[q], layout.question_offsets[q + 1]):
            with torch.no_grad():
                hidden = extractor.hidden("validation", w)
                logits = head(hidden, torch.tensor([len(hidden)]))
            found = result.logits["validation"][window(validation, w)]
            torch.testing.assert_close(torch.from_numpy(found), logits)
            bert = training.bert_logits["validation"][window(validation, w)]
            np.testing.assert_array_equal(bert, extractor.bert_logits("validation", w).numpy())
            pairs = zip(logits.T, torch.from_numpy(validation.labels[w]), strict=True)
            losses += [(-x.log_softmax(0)[label]).item() for x, label in pairs]
            nulls.append(float(found[layout.nulls[w]].astype(float).sum()))
            chars = layout.char_spans[window(validation, w)]
            begin, end = layout.context[w]
            for i in range(begin, end):
                for j in range(i, min(end, i + 30)):
                    spans.append(
                        (float(found[i, 0]) + float(found[j, 1]), chars[i, 0], chars[j, 1])
                    )
        score, start, stop = max(spans, key=lambda span: span[0])
        text = layout.contexts[q][start:stop] if score >= min(nulls) else ""
        scores.append(exact_and_f1(text, layout.golds[q]))
    assert records[-1].validation_loss == pytest.approx(np.mean(losses), rel=1e-5)
    expected = dict(zip(("exact", "f1"), np.mean(scores, axis=0), strict=True))
    assert records[-1].scores == {"validation": pytest.approx(expected)}
    assert expected["f1"] > 0.8, "the head has learned what there is to learn"


HEADS: dict[str, dict[str, object]] = {
    "default": {},
    "dropout": {"head.dropout": 0.4, "seed": 3},
    "own": {"train.batch_size": 25, "head.share_layers": "false", "head.skip": "mix"},
    "mix": {"head.kind": "scalar_mix"},
    "mean": {"head.kind": "mean_layers", "train.patience": 1},
    "wild": {"train.lr": 1e30},
}


def run_epoch(training: HeadTraining, extract: Callable[[BlockKey], EncodedBlock]) -> None:
    epoch, corpus = training.position.epoch, training.corpus
    order = epoch_order(len(corpus.blocks[TRAIN]), seed=1, epoch=epoch)
    keys = [BlockKey(TRAIN, int(i)) for i in order] + corpus.validation_keys
    for index, key in enumerate(keys):
        training.consume(Position(epoch, index), key, extract(key))
    training.end_epoch(epoch)


@pytest.mark.parametrize("stack", ["true", "false"])
def test_training_goes_on_from_a_file_bit_for_bit(tmp_path: Path, stack: str):
    extractor = SpanExtractor(make_corpus(), codec="int8")
    heads = {
        name: HeadJob(settings_of(**{"train.stack_heads": stack, **options}))
        for name, options in HEADS.items()
    }

    def start() -> HeadTraining:
        return make_training(extractor.corpus, SQUAD, heads, SHAPE, device=CPU)

    through, interrupted = start(), start()
    for _ in range(3):
        run_epoch(through, extractor.extract)
        run_epoch(interrupted, extractor.extract)
        save_checkpoint(tmp_path / "last.safetensors", interrupted.checkpoint())
        interrupted = start()
        interrupted.restore(load_checkpoint(tmp_path / "last.safetensors"))
    assert_same_training(interrupted, through)
    results = through.results()
    assert results["wild"].failure
    assert [len(results[name].history) for name in ("default", "mix")] == [3, 3]


def test_heads_that_would_fill_memory_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch):
    extractor = SpanExtractor(make_corpus())
    found = []
    for stack, most in (("false", 2**26), ("true", 1), ("true", 2**26)):
        monkeypatch.setattr("bertvision_stream.heads.stacked.MAX_FEATURES", most)
        heads = {
            str(i): HeadJob(settings_of(seed=i, **{"train.stack_heads": stack})) for i in range(3)
        }
        training = make_training(extractor.corpus, SQUAD, heads, SHAPE, device=CPU)
        run_epoch(training, extractor.extract)
        found.append(training.results())
    one_by_one, bounded, together = found
    for name, result in one_by_one.items():
        assert bounded[name].history == result.history
        assert together[name].history != result.history  # but for rounding
        assert together[name].history[0].loss == pytest.approx(result.history[0].loss, rel=1e-4)


def test_a_corpus_is_another_with_other_gold_answers():
    corpus = make_corpus()
    store = corpus.stores["validation"]
    assert isinstance(store, WindowStore)
    assert store.layout is not None
    golds = [("rollo",), *store.layout.golds[1:]]
    layout = dataclasses.replace(store.layout, golds=golds)
    changed = dataclasses.replace(store, layout=layout)
    stores = {**corpus.stores, "validation": changed}
    other = dataclasses.replace(corpus, stores=stores)
    assert other.fingerprint() != corpus.fingerprint() == make_corpus().fingerprint()


def test_encoded_logits_of_tokens_survive():
    hidden, logits = torch.randn(7, NUM_LAYERS, HIDDEN_SIZE), torch.randn(7, 2)
    assert torch.equal(encode(hidden, logits, "int8")[2], logits)
