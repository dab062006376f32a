"""The actor that hosts a frozen backbone."""

import time

import ray
import torch

from actors.records import DeviceInfo, Receipt
from bertvision_stream.backbone import Backbone, BackboneWeights, pick_dtype
from bertvision_stream.blocks import BlockKey
from bertvision_stream.codecs import Codec, EncodedBlock
from bertvision_stream.corpus import Corpus
from bertvision_stream.extract import BlockExtractor


@ray.remote
class FeatureExtractor:
    """Makes blocks on demand. Holds no state that matters: any extractor can make any block.

    Args:
        weights: The fine-tuned classifier, from the object store.
        corpus: Tokens and blocks, likewise.
        codec: How hidden states are stored.
        dtype: `backbone.dtype`.
        num_threads: CPU threads of the forward pass.
    """

    def __init__(
        self,
        weights: BackboneWeights,
        corpus: Corpus,
        *,
        codec: Codec,
        dtype: str,
        num_threads: int,
    ):
        # Left to its default, torch takes a thread for every core, in every extractor.
        torch.set_num_threads(num_threads)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        backbone = Backbone(weights.build(), device=device, dtype=pick_dtype(dtype, device))
        self._extractor = BlockExtractor(backbone, corpus, codec)

    def info(self) -> DeviceInfo:
        """Answers once the backbone is loaded."""
        backbone = self._extractor.backbone
        return DeviceInfo(
            backbone.device.type, "bf16" if backbone.dtype == torch.bfloat16 else "fp32"
        )

    @ray.method(num_returns=2)
    def extract(self, key: BlockKey) -> tuple[EncodedBlock, Receipt]:
        """One block, and a receipt that its caller can look at without fetching the block."""
        start = time.perf_counter()
        encoded = self._extractor.extract(key)
        return encoded, Receipt(time.perf_counter() - start)
