"""Byte sizes to the byte; what is stored comes back exactly, or within a stated error."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from tiny import one_thread  # noqa: F401

from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import BlockFormat
from bertvision_stream.stream.codecs import (
    EncodedBlock,
    decode,
    encode,
    scales_tensor,
    stored_tensor,
)

CODECS: tuple[Codec, ...] = ("bf16", "int8", "fp32")
DTYPES = (torch.float32, torch.bfloat16)
NUM_LAYERS, HIDDEN_SIZE, NUM_LOGITS = 7, 24, 3


def random_hidden(num_tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[T, L, D] with layers and dimensions of very different size, as in BERT."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, NUM_LAYERS, HIDDEN_SIZE, generator=generator)
    hidden *= torch.logspace(-3, 3, NUM_LAYERS).unsqueeze(-1)
    hidden[..., 5] *= 30  # an outlier dimension
    return hidden.to(dtype)


def encoded(hidden_TLD: torch.Tensor, codec: Codec, num_examples: int = 2) -> EncodedBlock:
    logits_BC = torch.arange(num_examples * NUM_LOGITS).reshape(num_examples, -1) / 7
    parts = [part.numpy() for part in encode(hidden_TLD, logits_BC, codec)]
    for part in parts:
        part.flags.writeable = False  # as Ray hands them out
    return EncodedBlock(*parts)


def decoded(block: EncodedBlock, dtype: torch.dtype) -> torch.Tensor:
    return decode(stored_tensor(block), scales_tensor(block), dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "num_examples"), [(1, 1), (33, 4)])
def test_block_bytes_are_known_before_the_block(
    codec: Codec, dtype: torch.dtype, num_tokens: int, num_examples: int
):
    block_format = BlockFormat(NUM_LAYERS, HIDDEN_SIZE, NUM_LOGITS, codec)
    block = encoded(random_hidden(num_tokens, dtype), codec, num_examples)
    assert block_format.block_bytes(num_tokens, num_examples) == block.nbytes


def test_bytes_of_a_token_of_minilm():
    token_bytes = {codec: BlockFormat(7, 384, 2, codec).token_bytes for codec in CODECS}
    assert token_bytes == {"bf16": 5376, "int8": 2688 + 28, "fp32": 10752}


@pytest.mark.parametrize("dtype", DTYPES)
def test_bf16_and_fp32_keep_every_bit(dtype: torch.dtype):
    hidden = random_hidden(20, dtype)
    codec: Codec = "fp32" if dtype == torch.float32 else "bf16"
    assert torch.equal(decoded(encoded(hidden, codec), dtype), hidden)
    # And nothing is lost on the way of what bf16 holds, whichever codec and head.
    exact = hidden.bfloat16()
    for codec, dtype in itertools.product(("bf16", "fp32"), DTYPES):
        assert torch.equal(decoded(encoded(exact, codec), dtype), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_off_by_at_most_half_a_step_of_its_token_and_layer(dtype: torch.dtype):
    hidden = random_hidden(50, dtype)
    error = (decoded(encoded(hidden, "int8"), torch.float32) - hidden.float()).abs()
    absmax = hidden.float().abs().amax(dim=-1, keepdim=True)
    assert (error <= absmax / 254 * 1.0001).all()  # and a rounding of fp32
    assert (error > absmax / 300).any()  # the bound is the right one


def test_int8_keeps_the_largest_value():
    hidden = random_hidden(50)
    restored = decoded(encoded(hidden, "int8"), torch.float32)
    largest = hidden.abs().argmax(dim=-1, keepdim=True)
    torch.testing.assert_close(
        restored.gather(-1, largest), hidden.gather(-1, largest), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("codec", CODECS)
def test_tokens_of_zeros_stay_zeros(codec: Codec):
    hidden = random_hidden(4)
    hidden[2] = 0
    restored = decoded(encoded(hidden, codec), torch.float32)
    assert torch.equal(restored[2], torch.zeros(NUM_LAYERS, HIDDEN_SIZE))
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_read_only_block_is_read_in_place_and_without_a_warning(codec: Codec):
    block = encoded(random_hidden(4), codec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored, scales = stored_tensor(block), scales_tensor(block)
    assert stored.data_ptr() == block.hidden.ctypes.data
    assert (scales is None) == (codec != "int8")
    if scales is not None:
        assert scales.data_ptr() == block.scales.ctypes.data


def test_logits_travel_in_fp32():
    _, _, logits = encode(random_hidden(4), torch.tensor([[1.5, -2.0]]).bfloat16(), "int8")
    np.testing.assert_array_equal(logits.numpy(), np.array([[1.5, -2.0]], dtype=np.float32))
