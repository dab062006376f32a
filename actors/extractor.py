"""The actor that hosts a frozen backbone."""

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
    """Makes blocks on demand. Holds no state that matters: any extractor can make any block."""

    def __init__(self, spec: "ExtractorSpec"):
        # Imported here and not above: the feature stream starts extractors and needs no torch.
        import torch

        from bertvision_stream.models.backbone import Backbone
        from bertvision_stream.models.extract import BlockExtractor
        from bertvision_stream.utils.devices import pick_dtype

        # Left to its default, torch takes a thread for every core, in every extractor.
        torch.set_num_threads(spec.num_threads)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        dtype = pick_dtype(spec.dtype, device)
        self._info = device_info(device, dtype)
        backbone = Backbone(ray.get(spec.weights).build(), device=device, dtype=dtype)
        self._extractor = BlockExtractor(backbone, ray.get(spec.corpus), spec.codec)

    def info(self) -> DeviceInfo:
        """Answers once the backbone is loaded."""
        return self._info

    @ray.method(num_returns=2)
    def extract(self, key: BlockKey):  # type: ignore[no-untyped-def]  # Ray splits the tuple
        """An `EncodedBlock`, and a `BlockReceipt` that tells of it without fetching it."""
        start = time.perf_counter()
        encoded = self._extractor.extract(key)
        return encoded, BlockReceipt(time.perf_counter() - start)


@dataclass(frozen=True)
class ExtractorSpec:
    """How to start an extractor, the first ones and those that take the place of lost ones.

    Attributes:
        run: Begins the actors' names.
        weights: Ref of the `BackboneWeights`.
        corpus: Ref of the `Corpus`.
        codec: How hidden states are stored.
        dtype: `backbone.dtype`.
        num_cpus: CPUs as Ray counts them.
        num_gpus: GPUs, a fraction allowed.
        num_threads: CPU threads of the forward pass.
    """

    run: str
    weights: ray.ObjectRef
    corpus: ray.ObjectRef
    codec: "Codec"
    dtype: str
    num_cpus: float
    num_gpus: float
    num_threads: int

    def start(self, index: int) -> ActorHandle:
        """Start extractor number `index`; it answers once it is ready."""
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
