"""The packed forward pass against transformers one by one, and what loading says of bad sources."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (  # noqa: F401
    CPU,
    HIDDEN_SIZE,
    MODEL_TYPES,
    NUM_LAYERS,
    VOCAB_SIZE,
    one_thread,
    random_lengths,
    save_model,
    tiny_classifier,
    token_store,
)
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.heads.shape import hidden_shape
from bertvision_stream.models.backbone import (
    Backbone,
    BackboneWeights,
    load_classifier,
    load_config,
    load_tokenizer,
    micro_batches,
    model_logits,
    padded_inputs,
    rescale_output,
)
from bertvision_stream.models.extract import BlockExtractor, validation_logits
from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockFormat
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.errors import BackboneError

LENGTHS = np.array([3, 9, 24, 25, 25, 25, 26, 40])


def one_by_one(
    model: PreTrainedModel, store: TokenStore
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states [S, L, D] of each example and logits [B, C], without any padding."""
    hidden, logits = [], []
    with torch.no_grad():
        for i in range(store.num_examples):
            span = slice(store.offsets[i], store.offsets[i + 1])
            inputs = {"input_ids": torch.tensor(store.input_ids[None, span], dtype=torch.long)}
            if getattr(model.config, "type_vocab_size", 0) > 1:
                types = torch.tensor(store.token_type_ids[None, span], dtype=torch.long)
                inputs["token_type_ids"] = types
            output = model(**inputs, output_hidden_states=True)
            hidden.append(torch.stack([states[0] for states in output.hidden_states], dim=1))
            logits.append(output.logits[0])
    return hidden, torch.stack(logits)


def backbone_of(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone(model, device=CPU, dtype=dtype)


@pytest.mark.parametrize("max_tokens", [60, 1024])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_packed_pass_equals_unpadded_passes_one_by_one(
    model_type: str, max_tokens: int, tmp_path: Path
):
    save_model(tmp_path, model_type)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    oracle = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    store = token_store(LENGTHS, np.zeros(len(LENGTHS), dtype=np.int64))
    expected_hidden, expected_logits = one_by_one(oracle, store)

    model, is_trained = load_classifier(str(tmp_path), num_labels=2)
    assert is_trained
    backbone = backbone_of(model)
    backbone.micro_batch_tokens = max_tokens
    runs = micro_batches(LENGTHS, max_tokens=max_tokens)
    assert 1 < len(runs) < len(LENGTHS)
    assert any(np.ptp(LENGTHS[run]) > 0 for run in runs)  # or else nothing is padded
    hidden_TLD, logits_BC = backbone.forward_packed(store.input_ids, store.token_type_ids, LENGTHS)

    assert hidden_TLD.shape == (LENGTHS.sum(), NUM_LAYERS, HIDDEN_SIZE)
    assert (backbone.num_layers, backbone.hidden_size) == (NUM_LAYERS, HIDDEN_SIZE)
    assert hidden_TLD.std(dim=(0, 2)).min() > 0.1  # 1e-5 means something at this scale
    torch.testing.assert_close(hidden_TLD, torch.cat(expected_hidden), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_BC, expected_logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layers_that_are_kept_and_the_logits_are_those_of_a_pass_that_keeps_all(
    model_type: str, dtype: torch.dtype
):
    store = token_store(LENGTHS, np.zeros(len(LENGTHS), dtype=np.int64))
    inputs = store.input_ids, store.token_type_ids, LENGTHS
    every, logits = backbone_of(tiny_classifier(model_type), dtype).forward_packed(*inputs)
    for layers in ((0, NUM_LAYERS - 1), (1,)):
        model = tiny_classifier(model_type)
        backbone = Backbone(model, device=CPU, dtype=dtype, layers=layers)
        kept, same_logits = backbone.forward_packed(*inputs)
        assert torch.equal(kept, every[:, list(layers)])
        assert torch.equal(same_logits, logits)


def test_token_types_reach_bert():
    backbone = backbone_of(tiny_classifier())
    store = token_store(LENGTHS, np.zeros(len(LENGTHS), dtype=np.int64))
    typed, _ = backbone.forward_packed(store.input_ids, store.token_type_ids, LENGTHS)
    untyped, _ = backbone.forward_packed(
        store.input_ids, np.zeros_like(store.token_type_ids), LENGTHS
    )
    assert (typed - untyped)[store.token_type_ids == 1, 0].abs().min(dim=-1).values.max() > 1e-3
    assert torch.equal(typed[store.token_type_ids == 0, 0], untyped[store.token_type_ids == 0, 0])


def replace_encoder(model: PreTrainedModel, last_BSD: torch.Tensor) -> None:
    """What is left are the layers after the encoder, on the hidden states given."""
    pooler = getattr(model.base_model, "pooler", None)
    pooled = pooler(last_BSD) if pooler else None
    model.base_model.forward = lambda *args, **kwargs: BaseModelOutputWithPooling(
        last_hidden_state=last_BSD, pooler_output=pooled
    )


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_in_bf16_hidden_states_are_the_encoders_and_logits_have_the_precision_of_fp32(
    model_type: str, per_token: bool
):
    def new_model() -> PreTrainedModel:
        return tiny_classifier(model_type, per_token=per_token)

    store = token_store(LENGTHS, np.zeros(len(LENGTHS), dtype=np.int64))
    inputs = store.input_ids, store.token_type_ids, LENGTHS
    in_fp32, logits_fp32 = backbone_of(new_model()).forward_packed(*inputs)
    backbone = backbone_of(new_model(), torch.bfloat16)
    in_bf16, logits = backbone.forward_packed(*inputs)
    assert in_bf16.dtype == torch.bfloat16
    assert (in_bf16.float() - in_fp32).abs().mean() < 0.02 * in_fp32.abs().mean()
    assert logits.dtype == torch.float32
    assert (logits - logits_fp32).abs().max() < 0.1 * logits_fp32.abs().max()
    assert not torch.equal(logits, logits.bfloat16().float())

    # The same hidden states, one example after another, through the unchanged last layers.
    oracle = new_model()
    for i, states_TLD in enumerate(in_bf16.float().split(LENGTHS.tolist())):
        last_BSD = states_TLD[None, :, -1]
        replace_encoder(oracle, last_BSD)
        expected = model_logits(oracle(torch.ones(last_BSD.shape[:2], dtype=torch.long)), None)
        found = logits.split(LENGTHS.tolist())[i] if per_token else logits[i : i + 1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_encoder_in_bf16_is_that_of_a_model_cast_as_a_whole():
    store = token_store(LENGTHS, np.zeros(len(LENGTHS), dtype=np.int64))
    hidden, _ = backbone_of(tiny_classifier(), torch.bfloat16).forward_packed(
        store.input_ids, store.token_type_ids, LENGTHS
    )
    (run, *_) = micro_batches(LENGTHS, max_tokens=1024)
    assert run == slice(0, 1)  # nothing is padded
    inputs = padded_inputs(
        tiny_classifier().config,
        np.ones((1, LENGTHS[0]), dtype=bool),
        store.input_ids[: LENGTHS[0]],
        store.token_type_ids[: LENGTHS[0]],
        CPU,
    )
    with torch.no_grad():
        states = tiny_classifier().to(torch.bfloat16)(**inputs, output_hidden_states=True)
    assert torch.equal(hidden[: LENGTHS[0]], torch.stack(states.hidden_states, dim=2)[0])


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("codec", ["bf16", "int8", "fp32"])
def test_extracted_blocks_have_the_bytes_that_were_planned(codec: Codec, num_labels: int):
    lengths = random_lengths(40)
    corpus = Corpus.pack(
        {TRAIN: token_store(lengths, np.zeros(40, dtype=np.int64))}, block_tokens=200, seed=0
    )
    backbone = backbone_of(tiny_classifier(num_labels=num_labels))
    config = backbone.model.config
    block_format = BlockFormat(*hidden_shape(config), config.num_labels, codec)
    extractor = BlockExtractor(backbone, corpus, codec)
    for block in corpus.blocks[TRAIN]:
        encoded = extractor.extract(block.key)
        assert encoded.nbytes == block_format.block_bytes(block.num_tokens, block.num_examples)


def test_blocks_hold_the_states_and_logits_of_their_own_examples():
    lengths = random_lengths(40)
    stores = {
        split: token_store(lengths, np.zeros(40, dtype=np.int64), seed=seed)
        for seed, split in enumerate((TRAIN, "matched", "mismatched"))
    }
    corpus = Corpus.pack(stores, block_tokens=200, seed=0)
    model = tiny_classifier()
    expected = {split: one_by_one(model, store) for split, store in stores.items()}
    backbone = backbone_of(model)
    extractor = BlockExtractor(backbone, corpus, "fp32")
    for split, (hidden, logits) in expected.items():
        for block in corpus.blocks[split]:
            encoded = extractor.extract(block.key)
            states = torch.cat([hidden[i] for i in block.example_ids])
            torch.testing.assert_close(torch.from_numpy(encoded.hidden), states, rtol=0, atol=1e-5)
            torch.testing.assert_close(
                torch.from_numpy(encoded.logits), logits[block.example_ids], rtol=0, atol=1e-5
            )
    found = validation_logits(backbone, corpus, make_objective(TASKS["cola"]))
    assert list(found) == ["matched", "mismatched"]
    for split, logits in found.items():
        np.testing.assert_allclose(logits, expected[split][1].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_weights_travel_as_arrays(model_type: str):
    model = tiny_classifier(model_type, num_labels=3)
    weights = BackboneWeights.of(model)
    arrays = {name: array.copy() for name, array in weights.arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False  # as Ray hands them out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rebuilt = BackboneWeights(weights.config, arrays).build().eval()
    assert type(rebuilt) is type(model)
    assert rebuilt.config.num_labels == 3
    ids = torch.arange(5, 12).unsqueeze(0)
    assert torch.equal(rebuilt(ids).logits, model(ids).logits)
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter.zero_()
    assert all(np.array_equal(arrays[name], weights.arrays[name]) for name in arrays)


def test_a_classifier_of_the_source_is_trained(tmp_path: Path):
    saved = save_model(tmp_path, num_labels=3)
    model, is_trained = load_classifier(
        str(tmp_path), num_labels=3, label_names=("yes", "perhaps", "no")
    )
    assert is_trained
    assert model.dtype == torch.float32
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert model.config.id2label == {0: "yes", 1: "perhaps", 2: "no"}
    assert model.config.label2id == {"yes": 0, "perhaps": 1, "no": 2}


@pytest.mark.parametrize("source_has", ["no classifier", "a classifier of another shape"])
def test_a_new_classifier_is_untrained_and_made_by_the_seed(tmp_path: Path, source_has: str):
    saved = save_model(tmp_path, num_labels=2)
    if source_has == "no classifier":
        AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    classifiers = []
    for noise, seed in ((1, 7), (2, 7), (3, 8)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model, is_trained = load_classifier(str(tmp_path), num_labels=3, seed=seed)
        assert not is_trained
        assert torch.equal(torch.get_rng_state(), before)
        embeddings = model.bert.embeddings.word_embeddings.weight
        assert torch.equal(embeddings, saved.bert.embeddings.word_embeddings.weight)
        classifiers.append(model.classifier.weight)
    assert torch.equal(classifiers[0], classifiers[1])
    assert not torch.equal(classifiers[0], classifiers[2])


def test_a_pooler_that_the_source_lacks_leaves_the_classifier_untrained(tmp_path: Path):
    save_model(tmp_path)
    rewrite(tmp_path, lambda state: {k: v for k, v in state.items() if ".pooler." not in k})
    _, is_trained = load_classifier(str(tmp_path), num_labels=2)
    assert not is_trained


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_rescaled_regression_gives_its_numbers_in_other_units(model_type: str):
    model = tiny_classifier(model_type, num_labels=1)
    ids = torch.arange(5, 29).reshape(3, 8)
    before = model(ids).logits
    rescale_output(model, mean=250_000.0, std=40_000.0)
    torch.testing.assert_close(model(ids).logits, 250_000 + 40_000 * before)


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    state = change(load_file(path))
    save_file(state, path, metadata={"format": "pt"})


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def loading_error(folder: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        load_classifier(str(folder), num_labels=2)
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_what_is_no_encoder_is_refused(tmp_path: Path, model_type: str):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    expected = (
        f"backbone={tmp_path} is a `{model_type}` model, not an encoder of the BERT family (bert, "
        "roberta, distilbert, electra, ...)"
    )
    assert loading_error(tmp_path) == expected
    with pytest.raises(BackboneError, match=re.escape(expected)):
        load_config(str(tmp_path))


def test_missing_weights_of_the_encoder(tmp_path: Path):
    save_model(tmp_path)
    rewrite(
        tmp_path, lambda state: {k: v for k, v in state.items() if "layer.1.attention" not in k}
    )
    assert loading_error(tmp_path) == (
        f"backbone={tmp_path}: the weights do not fit its configuration; 10 of the encoder's are "
        "missing or of another shape, first bert.encoder.layer.1.attention.output.LayerNorm.bias"
    )


def test_weights_of_another_shape(tmp_path: Path):
    save_model(tmp_path)
    set_config(tmp_path, vocab_size=VOCAB_SIZE + 1)
    assert loading_error(tmp_path) == (
        f"backbone={tmp_path}: the weights do not fit its configuration; 1 of the encoder's are "
        "missing or of another shape, first bert.embeddings.word_embeddings.weight"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_labels", 1e30),
        ("num_labels", 10**9),
        ("num_hidden_layers", 10**6),
        ("vocab_size", 10**12),
        ("hidden_size", 1e300),
        ("intermediate_size", 10**15),
        ("max_position_embeddings", 10**10),
        ("type_vocab_size", 10**10),
    ],
)
def test_sizes_that_make_no_sense_are_refused_before_memory_ends(
    tmp_path: Path, name: str, value: float
):
    save_model(tmp_path)
    set_config(tmp_path, **{name: value})
    said = f"backbone={tmp_path}: {name}={value:g} in its config.json makes no sense: no encoder"
    assert loading_error(tmp_path).startswith(said)
    with pytest.raises(BackboneError, match=f"^the backbone of the model: {name}="):
        AdapterPoolerConfig(backbone_config={"model_type": "bert", name: value})


def test_sizes_whose_product_makes_no_sense(tmp_path: Path):
    save_model(tmp_path)
    set_config(tmp_path, vocab_size=9_000_000, hidden_size=8_000_000)
    assert " of memory" in loading_error(tmp_path)


def test_weights_that_are_only_the_pointer_to_a_large_file(tmp_path: Path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert loading_error(tmp_path).startswith(f"backbone={tmp_path} cannot be loaded: ")


def test_a_configuration_that_is_no_json(tmp_path: Path):
    save_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    error = loading_error(tmp_path)
    assert error.startswith(f"backbone={tmp_path} cannot be loaded: ")
    assert "config.json" in error


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    save_model(tmp_path)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    capfd.readouterr()
    load_classifier(str(tmp_path), num_labels=2)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_of_a_folder(tmp_path: Path):
    save_model(tmp_path)
    assert load_tokenizer(str(tmp_path))("w1 w2")["input_ids"] == [2, 6, 7, 3]
