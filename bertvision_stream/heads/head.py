"""Heads: small trainable modules from packed hidden states `[T, L, D]` to logits.

The logits are those of every example, `[B, C]`, or where answers are spans those of every token,
`[T, C]`.
"""

from collections.abc import Mapping

import torch
from torch import nn

from bertvision_stream.heads.adapter_pooler import AdapterPooler
from bertvision_stream.heads.pooling import make_pool
from bertvision_stream.heads.scalar_mix import ScalarMix
from bertvision_stream.heads.segments import segment_starts
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.settings.settings import HeadSettings


class Head(nn.Module):
    """Layers to features, features to one vector an example, one linear layer to the logits.

    With `shape.per_token` there is no pooling, and the last layer makes logits of every token.

    With `start=bert` the last layer begins at zero, and what it gives is added to the logits of
    BERT's own classifier: the head begins as BERT, and moves away from it where that lowers the
    loss (side-tuning, arXiv:1912.13503). Else, `auto` included, it begins with random weights.

    | kind | features of a token |
    |---|---|
    | `adapter_pooler` | adapters of every layer, and a skip |
    | `scalar_mix` | the scalar mix of all layers |
    | `mean_layers` | the mean of all layers |
    | `cls` | the last layer's state, of the first token only |
    """

    def __init__(self, settings: HeadSettings, shape: HeadShape, *, seed: int):
        """Build the head, initialised by `seed` alone (neighbours on a trainer do not matter)."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(settings, shape)
        self.dropout = settings.dropout
        self.shape = shape
        # Heads of one key have the same formula, and parameters of the same shapes.
        alike = {"dropout": 0.0, "start": "bert" if self.begins_as_bert else "new"}
        self.stack_key = (settings.model_copy(update=alike), shape)
        self._generator_seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def _build(self, settings: HeadSettings, shape: HeadShape) -> None:
        self.kind = settings.kind
        # With one token an example read, only that token's features are computed.
        self.first_token_only = self.kind == "cls" or (
            self.kind == "adapter_pooler" and settings.pool == "cls"
        )
        self.features: nn.Module | None = None
        widths: tuple[int, ...] = (shape.hidden_size,)
        if self.kind == "adapter_pooler":
            self.features = AdapterPooler(
                shape.num_layers,
                shape.hidden_size,
                adapter_dim=settings.adapter_dim,
                share_layers=settings.share_layers,
                skip=settings.skip,
            )
            widths = self.features.widths
        elif self.kind == "scalar_mix":
            self.features = ScalarMix(shape.num_layers)
        pool = settings.pool if self.kind == "adapter_pooler" else "mean"
        positions = shape.max_length if pool == "flatten" else 1
        if shape.per_token:
            if self.first_token_only or pool != "mean":
                raise ValueError(f"a head of kind {self.kind} with pool {pool} has no token logits")
            self.pool = None
        else:
            pool_name = "cls" if self.first_token_only else pool
            self.pool = make_pool(pool_name, widths, shape.max_length)
        self.token_width = sum(widths)  # features of a token
        self.output = nn.Linear(positions * self.token_width, shape.num_outputs)
        self.bert_scale: nn.Parameter | None = None
        if settings.start == "bert":
            self.bert_scale = nn.Parameter(torch.ones(()))
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)
        elif shape.num_outputs == 1:
            nn.init.zeros_(self.output.bias)  # the mean label need not be learned

    @property
    def begins_as_bert(self) -> bool:
        """Whether the head adds its logits to those of BERT's own classifier."""
        return self.bert_scale is not None

    @property
    def mix(self) -> ScalarMix | None:
        """The learned mix of layers, of a head that has one."""
        if isinstance(self.features, AdapterPooler):
            return self.features.mix
        return self.features if isinstance(self.features, ScalarMix) else None

    @property
    def num_columns(self) -> int:
        """The columns of the product with each layer's states: the adapters', or 1 for a mix."""
        return self.features.weight.shape[-1] if isinstance(self.features, AdapterPooler) else 1

    @property
    def num_parameters(self) -> int:
        """The number of trained parameters."""
        return sum(p.numel() for p in self.parameters())

    def forward(
        self,
        hidden_TLD: torch.Tensor,
        lengths_B: torch.Tensor,
        bert_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packed hidden states [T, L, D] (bf16 or fp32) of B examples to logits in fp32.

        They are [B, C], or [T, C] with `shape.per_token`, and so are BERT's own logits, in fp32,
        which only a head that begins as BERT reads.
        """
        hidden_TLD, lengths_B = self.tokens_read(hidden_TLD, lengths_B)
        features = self.token_features(hidden_TLD)
        if self.pool is None:
            return self.classify(torch.cat(features, dim=-1), bert_logits)
        return self.classify(self.pool(features, lengths_B), bert_logits)

    def tokens_read(
        self, hidden_TLD: torch.Tensor, lengths_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens whose features count, and how many each example has of them."""
        if not self.first_token_only:
            return hidden_TLD, lengths_B
        return hidden_TLD[segment_starts(lengths_B)], torch.ones_like(lengths_B)

    def token_features(self, hidden_TLD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Parts [T, F_i] in fp32."""
        match self.features:
            case AdapterPooler():
                return self.features(hidden_TLD)
            case ScalarMix():
                return (self.features(hidden_TLD),)
        if self.kind == "mean_layers":
            return (hidden_TLD.float().mean(dim=1),)
        return (hidden_TLD[:, -1].float(),)

    def adapter_norms(
        self, hidden_TLD: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor | None:
        """Norms of the adapter's output by layer, summed over the tokens read: float64 [L].

        None for a head without adapters.
        """
        if not isinstance(self.features, AdapterPooler):
            return None
        read_TLD, _ = self.tokens_read(hidden_TLD, lengths_B)
        return self.features.output_norms(read_TLD).double().sum(dim=0)

    def dropout_state(self) -> dict[str, torch.Tensor]:
        """The states of the dropout's generators by device, to go on with the same draws."""
        return {str(device): g.get_state() for device, g in self._generators.items()}

    def load_dropout_state(self, states: Mapping[str, torch.Tensor]) -> None:
        """Go on with the draws of the head whose `dropout_state` this was."""
        self._generators = {torch.device(name): torch.Generator(name) for name in states}
        for device, generator in self._generators.items():
            generator.set_state(states[str(device)])

    def classify(self, pooled_BF: torch.Tensor, bert_logits: torch.Tensor | None) -> torch.Tensor:
        """Features [B, F] or [T, F] to logits, with dropout between them in training."""
        return self.logits(self.output(self._drop(pooled_BF)), bert_logits)

    def logits(self, output: torch.Tensor, bert_logits: torch.Tensor | None) -> torch.Tensor:
        """What the last layer gives to logits, both [B, C] or [T, C].

        They are the output or, of a head that begins as BERT, `output + scale * bert` with a
        learned scale, which begins at 1. A regression gives `mean + std * output`, or
        `std * output + bert + (scale - 1) * (bert - mean)`, with mean and standard deviation of its
        target. So the first logits are BERT's to the bit.

        Raises:
            ValueError: BERT's logits are missing where the head begins as BERT.
        """
        mean, std, scale = self.shape.target_mean, self.shape.target_std, self.bert_scale
        is_number = self.shape.num_outputs == 1
        if scale is None:
            return mean + std * output if is_number else output
        if bert_logits is None:
            raise ValueError("a head with start=bert needs BERT's own logits as third argument")
        if is_number:
            return std * output + bert_logits + (scale - 1) * (bert_logits - mean)
        return torch.addcmul(output, scale, bert_logits)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout from the head's own generator: neighbours do not change its numbers."""
        if not self.training or self.dropout == 0:
            return x
        if x.device not in self._generators:
            generator = torch.Generator(x.device).manual_seed(self._generator_seed)
            self._generators[x.device] = generator
        keep = 1 - self.dropout
        mask = torch.empty_like(x).bernoulli_(keep, generator=self._generators[x.device])
        return x * mask / keep
