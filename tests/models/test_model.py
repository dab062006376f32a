"""Exported models against the heads and backbones that they are made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import Exported, export_tiny
from safetensors.torch import load_file
from tiny import MAX_LENGTH, MODEL_TYPES, NUM_LAYERS, VOCAB_SIZE, one_thread  # noqa: F401
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bertvision_stream.models.head_model import AdapterPoolerForSequenceClassification
from bertvision_stream.models.last_layers import last_layers
from bertvision_stream.utils.errors import BackboneError, ConfigError

LENGTHS = (9, 3, MAX_LENGTH, 1, 20)
HEADS = (
    (),
    ("head.skip=mix", "head.pool=attention"),
    ("head.share_layers=false", "head.pool=cls", "head.dropout=0.3"),
    ("head.skip=none", "head.pool=flatten"),
    ("head.kind=scalar_mix",),
    ("head.kind=mean_layers",),
    ("head.kind=cls",),
    ("extract.layers=[0,-1]", "head.skip=mix"),
    ("extract.layers=1", "head.kind=cls"),
)
# Sums in another order, on logits of about 1.
FP32 = {"rtol": 0, "atol": 2e-5}


def load(folder: Path, **options: Any) -> AdapterPoolerForSequenceClassification:
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    assert isinstance(model, AdapterPoolerForSequenceClassification)
    return model


def random_examples(seed: int = 0) -> list[torch.Tensor]:
    """Token ids of each example, [S]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator) for length in LENGTHS]


def padded(examples: list[torch.Tensor], pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """The examples as one batch; their second halves are of type 1, and so is some padding."""
    ids = torch.nn.utils.rnn.pad_sequence(examples, batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor([len(example) for example in examples]).unsqueeze(1)
    positions = torch.arange(ids.shape[1])
    return {
        "input_ids": ids,
        "attention_mask": (positions < lengths).long(),
        "token_type_ids": (positions >= lengths // 2).long(),
    }


@torch.no_grad()
def expected_logits(exported: Exported, example: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [C] of the head and of BERT, from the two themselves: one example, no padding."""
    inputs = padded([example])
    if getattr(exported.classifier.config, "type_vocab_size", 0) < 2:
        del inputs["token_type_ids"]
    output = exported.classifier(**inputs, output_hidden_states=True)
    layers = json.loads((exported.folder / "config.json").read_text())["layers"]
    hidden_TLD = torch.stack(output.hidden_states, dim=2)[0][:, layers or slice(None)]
    lengths = torch.tensor([len(example)])
    return exported.head(hidden_TLD, lengths, output.logits)[0], output.logits[0]


@pytest.mark.parametrize("overrides", HEADS, ids=lambda overrides: " ".join(overrides) or "default")
def test_batched_logits_are_those_of_the_head_one_by_one(tmp_path: Path, overrides: Any):
    exported = export_tiny(tmp_path, *overrides)
    examples = random_examples()
    with torch.no_grad():
        output = load(exported.folder)(**padded(examples))
    for example, of_head, of_bert in zip(
        examples, output.logits, output.backbone_logits, strict=True
    ):
        head, bert = expected_logits(exported, example)
        torch.testing.assert_close(of_head, head, **FP32)
        torch.testing.assert_close(of_bert, bert, **FP32)
    assert output.logits.std(dim=0).min() > 0.01  # examples differ, or else this shows little


def test_the_states_of_all_layers_are_there_for_who_asks(tmp_path: Path):
    exported = export_tiny(tmp_path, "extract.layers=[-1,0]")
    model, batch = load(exported.folder), padded(random_examples())
    assert model.config.layers == [0, NUM_LAYERS - 1]
    with torch.no_grad():
        output, asked = model(**batch), model(**batch, output_hidden_states=True)
        every = exported.classifier(**batch, output_hidden_states=True).hidden_states
    assert output.hidden_states is None
    assert torch.equal(asked.logits, output.logits)
    for found, expected in zip(asked.hidden_states, every, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_model_of_a_version_without_a_choice_of_layers_reads_all(tmp_path: Path):
    exported, batch = export_tiny(tmp_path), padded(random_examples())
    with torch.no_grad():
        logits = load(exported.folder)(**batch).logits
    config = exported.folder / "config.json"
    facts = json.loads(config.read_text())
    del facts["layers"]
    config.write_text(json.dumps(facts))
    with torch.no_grad():
        assert torch.equal(load(exported.folder)(**batch).logits, logits)


@pytest.mark.parametrize("layers", [[0, NUM_LAYERS], [0, 0]])
def test_layers_that_the_backbone_lacks_are_refused(tmp_path: Path, layers: list[int]):
    exported = export_tiny(tmp_path, "extract.layers=[0,-1]")
    config = exported.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers": layers}))
    with pytest.raises((BackboneError, ConfigError)):
        load(exported.folder)


@pytest.mark.parametrize("backbone", ["refer", "inside"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_of_encoders_referred_to_or_inside(
    tmp_path: Path, model_type: str, backbone: str
):
    exported = export_tiny(
        tmp_path, f"export.backbone={backbone}", "head.start=bert", model_type=model_type
    )
    if backbone == "inside":
        shutil.rmtree(exported.backbone_folder)
        path = exported.folder / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BackboneError, match=r"model\.safetensors is damaged: its weights"):
            load(exported.folder)
        path.write_bytes(whole)
    names = {path.name for path in exported.folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "/somewhere" not in (exported.folder / "config.json").read_text()
    weights = load_file(exported.folder / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == (
        {"head"} if backbone == "refer" else {"head", "backbone"}
    )
    examples = random_examples()
    pad_token_id = exported.classifier.config.pad_token_id or 0
    with torch.no_grad():
        output = load(exported.folder)(**padded(examples, pad_token_id))
    expected = [expected_logits(exported, example)[0] for example in examples]
    torch.testing.assert_close(output.logits, torch.stack(expected), **FP32)


def test_padding_on_the_left_and_a_missing_mask(tmp_path: Path):
    model = load(export_tiny(tmp_path, "head.pool=flatten", "head.start=bert").folder)
    ids = random_examples()[0].unsqueeze(0)
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        output = model.backbone(input_ids=ids, output_hidden_states=True)
        moved = [
            torch.nn.functional.pad(layer, (0, 0, 4, 0), value=7.0)
            for layer in output.hidden_states
        ]
        mask = torch.nn.functional.pad(torch.ones_like(ids), (4, 0))
        assert torch.equal(model.run_head(tuple(moved), output, mask), alone)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_bf16_keeps_the_head_and_the_last_layers_of_the_backbone_in_fp32(
    tmp_path: Path, model_type: str
):
    """To the precision of bf16, 8 bits, on logits of about 1."""
    exported = export_tiny(tmp_path, model_type=model_type)
    inputs = padded(random_examples(), exported.classifier.config.pad_token_id)
    loaded = load(exported.folder, dtype=torch.bfloat16)
    last = last_layers(loaded.backbone)
    in_fp32 = {f"backbone.{name}." for name in last} | {"head."}
    for name, weight in loaded.named_parameters():
        is_last = name.startswith(tuple(in_fp32))
        assert weight.dtype == (torch.float32 if is_last else torch.bfloat16), name
        if is_last and name.startswith("backbone."):  # never rounded
            before = exported.classifier.get_parameter(name.removeprefix("backbone."))
            assert torch.equal(weight, before)
    cast = load(exported.folder).to(torch.bfloat16)
    with torch.no_grad():
        expected = load(exported.folder)(**inputs)
    for model in (loaded, cast):
        with torch.inference_mode():
            output = model(**inputs)
        for logits in ("logits", "backbone_logits"):
            assert output[logits].dtype == torch.float32
            torch.testing.assert_close(output[logits], expected[logits], rtol=0, atol=0.05)
            assert not torch.equal(output[logits], output[logits].bfloat16().float())
        model(**inputs, labels=torch.zeros(len(LENGTHS), dtype=torch.long)).loss.backward()


def test_a_saved_model_needs_no_other_folder_and_is_the_same(tmp_path: Path):
    exported = export_tiny(tmp_path / "outputs")
    model = load(exported.folder)
    assert model.config.backbone_source == "../../../backbones/mnli-tiny"
    model.save_pretrained(tmp_path / "saved")
    assert model.config.backbone_source == "../../../backbones/mnli-tiny"  # it is still what it was
    shutil.rmtree(tmp_path / "outputs")
    again = load(tmp_path / "saved")
    inputs = padded(random_examples())
    assert again.config.backbone_source is None
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    again.save_pretrained(tmp_path / "twice")
    names = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("saved", "twice")]
    assert names[0] == names[1]


def test_an_output_folder_can_be_moved(tmp_path: Path):
    exported = export_tiny(tmp_path / "outputs")
    inputs = padded(random_examples())
    with torch.no_grad():
        expected = load(exported.folder)(**inputs).logits
        (tmp_path / "outputs").rename(tmp_path / "elsewhere")
        moved = load(tmp_path / "elsewhere" / "mnli" / "one" / "model")
        assert torch.equal(moved(**inputs).logits, expected)


def test_a_backbone_taken_as_it_is_is_referred_to_where_it_is(tmp_path: Path):
    own = export_tiny(tmp_path / "own").backbone_folder
    settings = (f"backbone={own}", "finetune.epochs=0")
    exported = export_tiny(tmp_path / "outputs", *settings, finetuned_here=False)
    shutil.rmtree(exported.backbone_folder)
    model = load(exported.folder)
    assert model.config.backbone_source == str(own)
    examples = random_examples()
    with torch.no_grad():
        output = model(**padded(examples))
    head, bert = expected_logits(exported, examples[1])
    torch.testing.assert_close(output.logits[1], head, **FP32)
    torch.testing.assert_close(output.backbone_logits[1], bert, **FP32)


def test_a_backbone_of_the_hub_is_referred_to_with_its_revision(tmp_path: Path):
    settings = ("backbone=some/bert", "backbone.revision=1e10", "finetune.epochs=0")
    folder = export_tiny(tmp_path, *settings, finetuned_here=False).folder
    config = json.loads((folder / "config.json").read_text())
    assert (config["backbone_source"], config["backbone_revision"]) == ("some/bert", "1e10")


def test_a_pipeline_in_batches_gives_the_same(tmp_path: Path):
    classify = pipeline("text-classification", model=str(export_tiny(tmp_path).folder))
    pairs = [{"text": "w1 " * n, "text_pair": "w2 w3"} for n in (1, 20, 3, 7)]
    together = classify(pairs, batch_size=4)
    for pair, answer in zip(pairs, together, strict=True):
        (alone,) = classify([pair])
        assert alone["label"] == answer["label"]
        assert alone["score"] == pytest.approx(answer["score"], abs=1e-5)


def test_labels_and_loss_of_a_classification(tmp_path: Path):
    model = load(export_tiny(tmp_path).folder)
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert model.config.problem_type == "single_label_classification"
    labels = torch.tensor([0, 1, 2, 1, 0])
    inputs = padded(random_examples())
    output = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.head.parameters())
    loss, logits, *_ = model(**inputs, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_a_regression_gives_numbers(tmp_path: Path):
    exported = export_tiny(tmp_path, task="stsb")
    model = load(exported.folder)
    assert model.config.problem_type == "regression"
    numbers = torch.tensor([0.0, 1.0, 2.5, 5.0, 3.0])
    output = model(**padded(random_examples()), labels=numbers)
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - numbers) ** 2).mean())
    (answer,) = pipeline("text-classification", model=str(exported.folder))(
        [{"text": "w1 w2", "text_pair": "w3"}]
    )
    tokens = AutoTokenizer.from_pretrained(exported.folder)("w1 w2", "w3", return_tensors="pt")
    with torch.no_grad():
        assert answer["score"] == pytest.approx(float(model(**tokens).logits), abs=1e-5)


def test_the_tokenizer_knows_the_length_that_the_head_was_trained_on(tmp_path: Path):
    exported = export_tiny(tmp_path, "head.pool=flatten")
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    long = " ".join(["w1"] * 60)
    tokens = tokenizer(long, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (1, MAX_LENGTH)
    model = load(exported.folder)
    model(**tokens)
    with pytest.raises(ValueError, match=r"an example has 62 tokens.*40 positions.*truncation"):
        model(**tokenizer(long, return_tensors="pt"))


def test_an_example_without_a_token_is_refused(tmp_path: Path):
    model = load(export_tiny(tmp_path).folder)
    inputs = padded(random_examples())
    inputs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="an example has no token"):
        model(**inputs)


KNOWN = """
from transformers import AutoConfig, AutoModelForSequenceClassification
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForSequenceClassification.from_config(config)
assert type(model).__module__ == "bertvision_stream.models.head_model"
"""
NOTHING_HEAVY = """
import bertvision_stream, bertvision_stream.settings.command_line
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""
PROCESSES = {
    "transformers first": f"from transformers import AutoModel\nimport bertvision_stream\n{KNOWN}",
    "our model first": f"import bertvision_stream.models.head_model\n{KNOWN}",
    "our backbone first": f"import bertvision_stream.models.backbone\n{KNOWN}",
    "nothing heavy": NOTHING_HEAVY,
}
WITHOUT_RAY = 'assert not {"ray", "actors"} & set(sys.modules)'


def run_code(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{WITHOUT_RAY}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", PROCESSES)
def test_known_to_transformers_whatever_is_imported_first(tmp_path: Path, name: str):
    run_code(PROCESSES[name], export_tiny(tmp_path).folder)


def test_the_card_says_how_to_load_it_and_its_code_works_in_a_pipeline(tmp_path: Path):
    exported = export_tiny(tmp_path)
    card = (exported.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    assert "| validation | accuracy | 0.5000 | 0.6250 | 0.7500 |" in card
    assert "refers to the backbone in `../../../backbones/mnli-tiny`" in card
    assert "one of: entailment, neutral, contradiction." in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert '{"text": "the premise", "text_pair": "the hypothesis"}' in code
    code = code.replace("path/to/this/folder", str(exported.folder))
    code += "(answer,) = classify([{'text': 'w1', 'text_pair': 'w2'}]); print(answer['label'])"
    said = run_code(code)
    assert said.split("\n")[0] in ("entailment", "neutral", "contradiction")
    assert "not supported" not in said  # as a pipeline says of models that it does not know
