"""Exported models of answers in spans against the heads and backbones that they are made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import Exported, export_tiny
from safetensors.torch import load_file
from test_model import FP32, LENGTHS, padded, random_examples, run_code
from tiny import MODEL_TYPES, one_thread  # noqa: F401
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from bertvision_stream.models.head_model import PADDING_LOGIT, AdapterPoolerForQuestionAnswering
from bertvision_stream.utils.errors import BackboneError


def load(folder: Path, **options: Any) -> AdapterPoolerForQuestionAnswering:
    model = AutoModelForQuestionAnswering.from_pretrained(folder, **options)
    assert isinstance(model, AdapterPoolerForQuestionAnswering)
    return model


@torch.no_grad()
def expected_logits(exported: Exported, example: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [S, 2] of the head and of BERT, from the two themselves: one example, no padding."""
    inputs = padded([example])
    if getattr(exported.classifier.config, "type_vocab_size", 0) < 2:
        del inputs["token_type_ids"]
    output = exported.classifier(**inputs, output_hidden_states=True)
    layers = json.loads((exported.folder / "config.json").read_text())["layers"]
    hidden_TLD = torch.stack(output.hidden_states, dim=2)[0][:, layers or slice(None)]
    bert = torch.stack([output.start_logits[0], output.end_logits[0]], dim=1)
    return exported.head(hidden_TLD, torch.tensor([len(example)]), bert), bert


@pytest.mark.parametrize(
    ("overrides", "model_type"),
    [
        *(
            ((f"export.backbone={b}", "head.start=bert"), kind)
            for kind in MODEL_TYPES
            for b in ("refer", "inside")
        ),
        (("head.skip=mix", "head.share_layers=false"), "bert"),
        (("head.kind=scalar_mix",), "bert"),
        (("head.kind=mean_layers",), "bert"),
        (("extract.layers=[1,-1]",), "bert"),
    ],
    ids=str,
)
def test_batched_logits_are_those_of_the_head_one_by_one(
    tmp_path: Path, overrides: tuple[str, ...], model_type: str
):
    exported = export_tiny(tmp_path, *overrides, task="squad_v2", model_type=model_type)
    weights = load_file(exported.folder / "model.safetensors")
    inside = overrides[0] == "export.backbone=inside"
    assert {name.split(".")[0] for name in weights} == (
        {"head", "backbone"} if inside else {"head"}
    )
    if inside:
        shutil.rmtree(exported.backbone_folder)
    examples = random_examples()
    inputs = padded(examples, exported.classifier.config.pad_token_id or 0)
    with torch.no_grad():
        output = load(exported.folder)(**inputs)
    of_head = torch.stack([output.start_logits, output.end_logits], dim=-1)
    of_bert = torch.stack([output.backbone_start_logits, output.backbone_end_logits], dim=-1)
    for row, example in enumerate(examples):
        head, bert = expected_logits(exported, example)
        torch.testing.assert_close(of_head[row, : len(example)], head, **FP32)
        torch.testing.assert_close(of_bert[row, : len(example)], bert, **FP32)
        assert (of_head[row, len(example) :] == PADDING_LOGIT).all()
    real = inputs["attention_mask"].bool()
    assert of_head[real].std(dim=0).min() > 0.01  # tokens differ, or else this shows little


def test_the_loss_is_that_of_each_examples_own_tokens(tmp_path: Path):
    model = load(export_tiny(tmp_path, task="squad_v2").folder)
    examples = random_examples()
    inputs = padded(examples)
    starts, ends = torch.tensor([3, 0, 20, 0, 5]), torch.tensor([4, 2, 30, 0, 99])
    output = model(**inputs, start_positions=starts, end_positions=ends)

    def mean_loss(logits_BS: torch.Tensor, positions: list[int]) -> torch.Tensor:
        losses = [
            -logits_BS[row, : LENGTHS[row]].log_softmax(0)[position]
            for row, position in enumerate(positions)
            if position < 99  # outside of every example: it does not count
        ]
        return torch.stack(losses).mean()

    of_start = mean_loss(output.start_logits, starts.tolist())
    of_end = mean_loss(output.end_logits, ends.tolist())
    torch.testing.assert_close(output.loss, (of_start + of_end) / 2)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.head.parameters())
    loss, start_logits, end_logits, *_ = model(
        **inputs, start_positions=starts, end_positions=ends, return_dict=False
    )
    assert torch.equal(loss, output.loss)
    assert torch.equal(start_logits, output.start_logits)
    assert torch.equal(end_logits, output.end_logits)


def test_a_saved_model_needs_no_other_folder_and_is_the_same(tmp_path: Path):
    model = load(export_tiny(tmp_path / "outputs", task="squad_v2").folder)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "outputs")
    again = load(tmp_path / "saved")
    inputs = padded(random_examples())
    with torch.no_grad():
        for name in ("start_logits", "backbone_end_logits"):
            assert torch.equal(again(**inputs)[name], model(**inputs)[name])
    assert again.config.id2label == {0: "start", 1: "end"}


@pytest.mark.parametrize("backbone", ["refer", "inside"])
def test_a_model_of_the_other_kind_is_refused(tmp_path: Path, backbone: str):
    """Its weights would fit: a head of two classes has as many as one of start and end."""
    setting = f"export.backbone={backbone}"
    spans = export_tiny(tmp_path, setting, task="squad_v2").folder
    classes = export_tiny(tmp_path, setting, task="cola").folder
    with pytest.raises(BackboneError) as caught:
        AutoModelForSequenceClassification.from_pretrained(spans)
    assert str(caught.value) == (
        f"{spans} is an AdapterPoolerForQuestionAnswering, not an "
        f"AdapterPoolerForSequenceClassification: load it with AutoModelForQuestionAnswering"
    )
    with pytest.raises(BackboneError, match="load it with AutoModelForSequenceClassification"):
        AutoModelForQuestionAnswering.from_pretrained(classes)


def test_the_card_says_how_to_load_it_and_its_code_answers(tmp_path: Path):
    exported = export_tiny(tmp_path, task="squad_v2")
    card = (exported.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: question-answering\n")
    assert "From question and context to the span of the context that answers" in card
    assert "| validation | f1 | 0.5000 | 0.6250 | 0.7500 |" in card
    assert "| `data.stride` | `13` |" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    code = code.replace("path/to/this/folder", str(exported.folder))
    pairs = [(f"w{i} w3", " ".join(f"w{(i * n) % 50}" for n in range(1, 30))) for i in range(8)]
    said = run_code(f"{code}\nfor pair in {pairs!r}: print(f'<{{answer(*pair)}}>')")
    lines = [line for line in said.splitlines() if line.startswith("<")]

    model, tokenizer = load(exported.folder), AutoTokenizer.from_pretrained(exported.folder)
    expected = []
    for question, context in pairs:
        tokens = tokenizer(question, context, return_tensors="pt")
        with torch.no_grad():
            output = model(**tokens)
        start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        best, text = start[0] + end[0], ""
        words, first = context.split(), len(question.split()) + 2
        for i in range(len(words)):
            for j in range(i, len(words)):
                if start[first + i] + end[first + j] > best:
                    best, text = start[first + i] + end[first + j], " ".join(words[i : j + 1])
        expected.append(f"<{text}>")
    assert lines == expected
    assert len(set(expected)) > 4  # they differ, or else this shows little
