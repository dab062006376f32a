"""Which encoders can be streamed, found by what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, save_model, tiny_classifier
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from bertvision_stream.models.encoder_check import check_ids, check_states, num_positions
from bertvision_stream.utils.errors import BackboneError

_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_FROM_1 = _BERT | {"pad_token_id": 1}
_SMALL = _BERT | {"embedding_size": 16}
_DEBERTA = _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_MOBILE = {"intra_bottleneck_size": 16, "true_hidden_size": 16, "use_bottleneck": False}
# By family: the options of a tiny one, and the positions that it has of 64.
ACCEPTED: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "bert": (_BERT, 64),
    "roberta": (_FROM_1, 62),
    "xlm-roberta": (_FROM_1, 62),
    "camembert": (_FROM_1, 62),
    "electra": (_SMALL, 64),
    "distilbert": ({"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, 64),
    "albert": (_SMALL, 64),
    "deberta-v2": (_DEBERTA | {"position_biased_input": False, "type_vocab_size": 0}, 64),
    "mpnet": (_FROM_1, 62),
    "modernbert": (_BERT | {"pad_token_id": 0, "local_attention": 8}, 64),
    "mobilebert": (_SMALL | _MOBILE, 64),
}
# With the layer in which padding is first seen.
REFUSED: Mapping[str, Mapping[str, Any]] = {
    "fnet": _BERT,
    "convbert": _SMALL | {"head_ratio": 1, "conv_kernel_size": 9},
}


def tiny(family: str, options: Mapping[str, Any]) -> PreTrainedModel:
    common = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 64, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**common, **options})
        return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("family", ACCEPTED)
def test_encoders_that_leave_padding_out(family: str):
    options, positions = ACCEPTED[family]
    model = tiny(family, options)
    check_states(model, family)
    assert num_positions(model.config) == positions
    # That many tokens, and not one more where each position has an embedding of its own.
    ids = torch.full((1, positions), 7)
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


@pytest.mark.parametrize("family", REFUSED)
def test_encoders_whose_states_depend_on_their_neighbours(family: str):
    with pytest.raises(BackboneError, match="depend on the padding beside a text"):
        check_states(tiny(family, REFUSED[family]), family)


class _Odd(torch.nn.Module):
    """An encoder whose hidden states were changed after it computed them."""

    def __init__(self, change: Any):
        super().__init__()
        self._model = tiny_classifier()
        self.config = self._model.config
        self._change = change

    def forward(self, **inputs: Any) -> Any:
        states = self._model(**inputs).hidden_states
        return SimpleNamespace(hidden_states=self._change(states))


def fails(states: Any) -> Any:
    raise RuntimeError("shape '[-1, 2]' is invalid\nand more")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda states: states[:-1], "returns 2 hidden states, and its configuration names 3"),
        (
            lambda states: (*states[:2], states[2][:, ::2]),
            r"states of layer 2 have the shape \[2, 9, 16\] where \[2, 17, 16\] was expected",
        ),
        (
            lambda states: (states[0], states[1] * torch.nan, states[2]),
            "depend on the padding beside a text",
        ),
        (fails, r"failed \(RuntimeError: shape '\[-1, 2\]' is invalid\)"),
    ],
)
def test_states_that_are_not_what_they_should_be(change: Any, told: str):
    with pytest.raises(BackboneError, match=told):
        check_states(_Odd(change), "odd")  # type: ignore[arg-type]


def test_ids_without_an_embedding(tmp_path: Path):
    config = save_model(tmp_path).config
    check_ids(VOCAB_SIZE - 1, config, "tiny")
    with pytest.raises(BackboneError, match=f"the token id {VOCAB_SIZE}, .* 0 to {VOCAB_SIZE - 1}"):
        check_ids(VOCAB_SIZE, config, "tiny")
