"""A finished run's head and BERT on new rows, in this process.

One head reads the rows once: there is nothing to share, to cache or to train, so actors would cost
their start and save nothing. The code of the stream makes and opens the blocks, in the precision
and the codec of the run, so that the numbers are those that the run would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bertvision_stream.data.splits import Split
from bertvision_stream.data.tokenize import tokens_of
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import Backbone, load_tokenizer, quiet
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.head_model import model_class
from bertvision_stream.models.sources import explained
from bertvision_stream.modes.finished_run import FinishedRun
from bertvision_stream.stream.blocks import BlockFormat, pick_block_tokens
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.batches import OpenBlock
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.devices import keep_freed_memory, pick_dtype
from bertvision_stream.utils.log import show_progress

_BLOCK_BYTES = 2**28  # The most bytes of hidden states at once.


@dataclass(frozen=True)
class Scored:
    """The scores of one split.

    Attributes:
        store: The tokens of the split.
        predictor_scores: The scores of the three predictors, combined as the run combined them.
    """

    store: TokenStore
    predictor_scores: PredictorScores


class Scorer:
    """A finished run's model, on a GPU if there is one.

    Args:
        run: The finished run.

    Raises:
        BackboneError: The model cannot be loaded.
    """

    def __init__(self, run: FinishedRun):
        keep_freed_memory()
        self.run = run
        self.objective = make_objective(run.task)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head_dtype = pick_dtype(run.settings.train.precision, self.device)
        with quiet(), explained(f"the model {run.model}"):
            model = model_class(per_token=run.task.per_token).from_pretrained(run.model)
        self._tokenizer: Any = load_tokenizer(str(run.model))
        self._head = model.head.to(self.device).requires_grad_(False)
        dtype = pick_dtype(run.settings.backbone.dtype, self.device)
        self.backbone = Backbone(
            model.backbone, device=self.device, dtype=dtype, layers=model.layers_read
        )

    @torch.inference_mode()
    def score(self, split: Split) -> Scored:
        """The scores of all rows of a split, in their order."""
        settings, objective = self.run.settings, self.objective
        store = tokens_of(split, self._tokenizer, settings.data)
        corpus = self._pack(split.name, store)
        extractor = BlockExtractor(self.backbone, corpus, settings.extract.codec)
        bert, head = objective.empty_logits(store), objective.empty_logits(store)
        unit = "window" if self.run.task.per_token else "row"
        with tqdm(
            total=store.num_examples, desc=split.name, unit=unit, disable=not show_progress()
        ) as bar:
            for block in corpus.blocks[split.name]:
                encoded = extractor.extract(block.key)
                opened = OpenBlock(
                    encoded,
                    block.lengths,
                    store.labels[block.example_ids],
                    device=self.device,
                    dtype=self.head_dtype,
                )
                batch = opened.take(np.arange(block.num_examples))
                logits = self._head(batch.hidden_TLD, batch.lengths_B, batch.bert_logits)
                rows = objective.rows(store, block.example_ids)
                bert[rows], head[rows] = encoded.logits, logits.cpu().numpy()
                bar.update(block.num_examples)
        method = settings.evaluate.ensemble
        return Scored(store, objective.predictor_scores(bert, head, method, store))

    def _pack(self, name: str, store: TokenStore) -> Corpus:
        """Puts the rows into blocks of a size that suits them and that memory has room for."""
        settings = self.run.settings
        block_format = BlockFormat.of(self._head.shape, settings.extract.codec)
        block_tokens = pick_block_tokens(
            num_tokens=store.num_tokens,
            longest=int(store.lengths.max()),
            token_bytes=block_format.token_bytes,
            most_bytes=_BLOCK_BYTES,
            on_gpu=self.device.type == "cuda",
        )
        return Corpus.pack({name: store}, block_tokens=block_tokens, seed=settings.seed)
