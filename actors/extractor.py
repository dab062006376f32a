"""The actor that makes blocks with a frozen backbone, and how it is started."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from actors.records import BlockReceipt, device_info
from bertvision_stream.stream.blocks import BlockKey
from bertvision_stream.stream.stats import DeviceInfo
from bertvision_stream.utils.torch_environment import TORCH_ENVIRONMENT

if TYPE_CHECKING:
    from bertvision_stream.settings.types import Codec


class FeatureExtractor:
    """Makes blocks of hidden states on request.

    Every extractor has the same backbone and the same corpus, and none remembers what it has made:
    any extractor can make any block, and one that dies is replaced without loss.

    Args:
        spec: How this extractor is started.
    """

    def __init__(self, spec: "ExtractorSpec"):
        # Imported here and not at the top: the feature stream imports this module to start
        # extractors, and does without torch, which takes seconds and memory to load.
        import torch

        from bertvision_stream.models.backbone import Backbone
        from bertvision_stream.models.extract import BlockExtractor
        from bertvision_stream.utils.devices import pick_dtype

        # By default torch starts a thread for every core in every extractor, and these threads
        # then compete for the cores.
        torch.set_num_threads(spec.num_threads)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        dtype = pick_dtype(spec.dtype, device)
        self._info = device_info(device, dtype)
        model = ray.get(spec.weights).build()
        backbone = Backbone(model, device=device, dtype=dtype, layers=spec.layers)
        self._extractor = BlockExtractor(backbone, ray.get(spec.corpus), spec.codec)

    def info(self) -> DeviceInfo:
        """What the extractor runs on; the call returns once the backbone is loaded."""
        return self._info

    # Two return values are two objects in Ray: the caller can await the receipt alone, and pass the
    # ref of the block on to the trainers without reading it.
    @ray.method(num_returns=2)
    def extract(self, key: BlockKey):  # type: ignore[no-untyped-def]  # Ray splits the tuple
        """Make a block.

        Args:
            key: The split and the number of the block.

        Returns:
            The `EncodedBlock`, and a `BlockReceipt` that says that it is made.
        """
        start = time.perf_counter()
        encoded = self._extractor.extract(key)
        return encoded, BlockReceipt(time.perf_counter() - start)


@dataclass(frozen=True)
class ExtractorSpec:
    """How to start an extractor, be it one of the first or the replacement of one that died.

    Attributes:
        run: The name of the stream, with which the names of its extractors begin.
        weights: A ref of the `BackboneWeights`.
        corpus: A ref of the `Corpus`.
        codec: How hidden states are stored.
        dtype: `backbone.dtype`.
        num_cpus: The CPUs that each extractor reserves, as Ray counts them.
        num_gpus: The GPUs that each extractor reserves, a fraction allowed.
        num_threads: The CPU threads of the forward pass.
        resident_bytes: The bytes that weights and tokens take in the object stores.
        layers: The layers whose hidden states are kept; None keeps all.
    """

    run: str
    weights: ray.ObjectRef
    corpus: ray.ObjectRef
    codec: "Codec"
    dtype: str
    num_cpus: float
    num_gpus: float
    num_threads: int
    resident_bytes: int = 0
    layers: tuple[int, ...] | None = None

    def start(self, index: int) -> ActorHandle:
        """Start an extractor; its methods return once it is ready.

        Args:
            index: The number of the extractor in its stream, counted from 0.
        """
        extractor: Any = (
            ray.remote(FeatureExtractor)
            .options(
                name=f"{self.run}-extractor-{index}",
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
                runtime_env={"env_vars": TORCH_ENVIRONMENT},
                # On a GPU one call computes while the other copies its block to the host.
                max_concurrency=2 if self.num_gpus else 1,
            )
            .remote(self)
        )
        return extractor
