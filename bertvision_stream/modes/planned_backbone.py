"""The backbone of `mode=plan`, which need not be here: a configuration and a tokenizer are enough.

A plan depends on the number and the width of the layers, and on how many tokens the rows have.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from bertvision_stream.models.sources import MINILM, locate
from bertvision_stream.utils.errors import BackboneError

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import TaskSettings

# The encoder layers, the hidden size and the words of the vocabulary of much used backbones.
KNOWN_SHAPES = {
    "bert-base-uncased": (12, 768, 30522),
    "bert-large-uncased": (24, 1024, 30522),
    "bert-base-cased": (12, 768, 28996),
    "bert-large-cased": (24, 1024, 28996),
    "roberta-base": (12, 768, 50265),
    "roberta-large": (24, 1024, 50265),
    "distilbert-base-uncased": (6, 768, 30522),
}
_VOCABULARY = 30522  # the words of MiniLM and of all uncased backbones above
_HEAD_SIZE = 64  # the width of an attention head in every backbone above


@dataclass(frozen=True)
class PlannedBackbone:
    """What is known of the backbone that is planned with.

    Attributes:
        source: The folder or hub id that `locate` found; None if the backbone is not here.
        tokenizer_source: The same, or that of the backbone whose tokenizer stands in.
        num_encoder_layers: The number that is given or known; None takes the source's.
        hidden_size: The width that is given or known; None takes the source's.
        vocabulary_size: The number of words, if it is not the source's configuration that counts.
        note: What stands in for what, for people to read; empty if nothing does.
    """

    source: str | None
    tokenizer_source: str
    num_encoder_layers: int | None = None
    hidden_size: int | None = None
    vocabulary_size: int = _VOCABULARY
    note: str = ""

    def config(self, revision: str | None) -> Any:
        """The transformers configuration: the source's, or that of a BERT of the planned shape."""
        from transformers import BertConfig

        from bertvision_stream.models.backbone import load_config

        if self.hidden_size is None or self.num_encoder_layers is None:
            assert self.source is not None
            return load_config(self.source, revision)
        return BertConfig(
            vocab_size=self.vocabulary_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_encoder_layers,
            # All attention heads are equally wide, so that their number divides the hidden size.
            num_attention_heads=gcd(self.hidden_size, max(self.hidden_size // _HEAD_SIZE, 1)),
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=512,
        )


def find_planned(settings: TaskSettings) -> PlannedBackbone:
    """Find a backbone, without torch; a given or known shape stands in for one that is not here.

    Args:
        settings: The settings of the task, with `backbone.*`, `plan.layers`, `plan.hidden_size`.

    Raises:
        BackboneError: The backbone is not here and its shape is not known, or there is no
            tokenizer.
    """
    name, layers, hidden_size = (
        settings.backbone.name,
        settings.plan.layers,
        settings.plan.hidden_size,
    )
    note = ""
    if layers:
        note = (
            f"{layers} layers of {hidden_size} are taken as given (plan.layers, plan.hidden_size)"
        )
    try:
        source = locate(name, settings.backbone.revision)
        return PlannedBackbone(source, source, layers, hidden_size, note=note)
    except BackboneError as error:
        absent = error
    known = KNOWN_SHAPES.get(name.rpartition("/")[2])
    if layers is None:
        if known is None:
            raise BackboneError(
                f"{absent} To plan without it, say how large it is: plan.layers=24 "
                f"plan.hidden_size=1024."
            ) from absent
        layers, hidden_size, _ = known
        note = f"{name} is not here: its {layers} layers of {hidden_size} are known"
    try:
        tokenizer_source = locate(MINILM)
    except BackboneError as error:
        raise BackboneError(
            f"backbone={name} is not here, and the tokenizer that would stand in for its own is "
            f"not either: {error}"
        ) from error
    same = known is not None and known[2] == _VOCABULARY
    counted = "which is the same" if same else "an approximation"
    note += f"; tokens are counted with minilm's vocabulary, {counted}"
    vocabulary_size = known[2] if known else _VOCABULARY
    return PlannedBackbone(None, tokenizer_source, layers, hidden_size, vocabulary_size, note)
