"""The backbone of `mode=plan`: a configuration and a tokenizer are enough, and it need not be here.

A plan depends on the number and width of the layers and on how many tokens the rows have.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from bertvision_stream.models.sources import MINILM, locate
from bertvision_stream.utils.errors import BackboneError

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import TaskSettings

# (encoder layers, hidden size, words of the vocabulary) of backbones that people plan with.
KNOWN_SHAPES = {
    "bert-base-uncased": (12, 768, 30522),
    "bert-large-uncased": (24, 1024, 30522),
    "bert-base-cased": (12, 768, 28996),
    "bert-large-cased": (24, 1024, 28996),
    "roberta-base": (12, 768, 50265),
    "roberta-large": (24, 1024, 50265),
    "distilbert-base-uncased": (6, 768, 30522),
}
_MAX_POSITIONS = 512
_VOCABULARY = 30522
_HEAD_SIZE = 64  # of every BERT of the table


@dataclass(frozen=True)
class PlannedBackbone:
    """Where a plan's numbers come from.

    Attributes:
        source: What `locate` returned; None where the backbone is not here.
        tokenizer_source: The same, or that of the backbone whose tokenizer stands in.
        num_encoder_layers: Given or known; None: that of the source's configuration.
        hidden_size: Likewise.
        vocabulary_size: Likewise.
        note: What stands in for what, for people; may be empty.
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
        wanted = max(self.hidden_size // _HEAD_SIZE, 1)
        return BertConfig(
            vocab_size=self.vocabulary_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_encoder_layers,
            num_attention_heads=gcd(self.hidden_size, wanted),
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=_MAX_POSITIONS,
        )


def find_planned(settings: TaskSettings) -> PlannedBackbone:
    """Find what there is of a backbone, without torch; a known or given shape stands in for it.

    Args:
        settings: `backbone.*`, `plan.layers` and `plan.hidden_size`.

    Raises:
        BackboneError: It is not here and its shape is not known, or there is no tokenizer.
    """
    name, plan = settings.backbone.name, settings.plan
    layers, hidden_size = plan.layers, plan.hidden_size
    given = f"{layers} layers of {hidden_size} are taken as given (plan.layers, plan.hidden_size)"
    try:
        source = locate(name, settings.backbone.revision)
    except BackboneError as error:
        absent = error
    else:
        note = given if layers else ""
        return PlannedBackbone(source, source, layers, hidden_size, note=note)
    known = KNOWN_SHAPES.get(name.rpartition("/")[2])
    if layers is None and known is None:
        raise BackboneError(
            f"{absent} To plan without it, say how large it is: plan.layers=24 "
            f"plan.hidden_size=1024."
        ) from absent
    shape = known or (None, None, _VOCABULARY)
    note = given if layers else f"{name} is not here: its {shape[0]} layers of {shape[1]} are known"
    same = known is not None and shape[2] == _VOCABULARY
    note += "; tokens are counted with minilm's vocabulary, " + (
        "which is the same" if same else "an approximation"
    )
    try:
        tokenizer_source = locate(MINILM)
    except BackboneError as error:
        raise BackboneError(
            f"backbone={name} is not here, and the tokenizer that would stand in for its own is "
            f"not either: {error}"
        ) from error
    return PlannedBackbone(
        None, tokenizer_source, layers or shape[0], hidden_size or shape[1], shape[2], note
    )
