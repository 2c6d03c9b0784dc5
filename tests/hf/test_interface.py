"""The attention function that transformers' modules call: what it reads of their arguments, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead.errors import UnsupportedError
from tests.tolerances import assert_close

masking = pytest.importorskip("transformers.masking_utils", reason="the modules are transformers'")

from polyhead.hf.interface import attention_function  # noqa: E402
from polyhead.hf.masks import Mask, lazy_mask  # noqa: E402

BATCH, HEADS, KV_HEADS, WIDTH, V_WIDTH = 2, 6, 3, 4, 5


def tensors(q_len: int = 7, kv_len: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    shapes = (HEADS, q_len, WIDTH), (KV_HEADS, kv_len, WIDTH), (KV_HEADS, kv_len, V_WIDTH)
    query, key, value = (torch.randn(BATCH, *shape, generator=numbers) for shape in shapes)
    return query, key, value


def module(**attributes: Any) -> Any:
    return SimpleNamespace(**{"training": False, "is_causal": True, **attributes})


def mask(function: Any, q_len: int = 7, kv_len: int = 7, **more: Any) -> Mask:
    return lazy_mask(batch_size=BATCH, q_length=q_len, kv_length=kv_len, mask_function=function, **more)


CAUSAL, FULL = masking.causal_mask_function, masking.bidirectional_mask_function
WINDOW = masking.sliding_window_causal_mask_function(3)


def expected(pattern: Any, q_len: int = 7, kv_len: int = 7, **weighting: Any) -> Any:
    """Return what the oracle computes, ``[batch, q_len, heads, width]``."""
    spec = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=WIDTH, v_head_dim=V_WIDTH),
        pattern=pattern,
        weighting=ph.Softmax(**weighting),
    )
    params = {"sinks": SINKS.double().numpy()} if spec.weighting.sink else None
    arrays = (x.double().numpy() for x in tensors(q_len, kv_len))
    return ph.oracle.attend(*arrays, spec, params=params).swapaxes(1, 2)


SINKS = torch.linspace(-1.0, 1.0, HEADS)


def test_it_reads_scale_softcap_and_sinks() -> None:
    output, weights = attention_function(
        module(), *tensors(), mask(WINDOW), scaling=0.7, sliding_window=3, softcap=1.5, s_aux=SINKS
    )
    assert_close(output, expected(ph.SlidingWindow.causal(3), scale=0.7, softcap=1.5, sink=True), torch.float32)
    assert output.is_contiguous()
    assert weights is None


@pytest.mark.parametrize(
    ("attributes", "given", "pattern"),
    [
        ({}, {}, ph.Causal()),
        ({"is_causal": False}, {}, ph.Full()),
        ({"is_causal": False}, {"is_causal": True}, ph.Causal()),
        ({}, {"is_causal": False}, ph.Full()),
    ],
)
def test_no_mask_means_what_it_means_to_sdpa(attributes: Any, given: Any, pattern: Any) -> None:
    output, _ = attention_function(module(**attributes), *tensors(), None, **given)
    assert_close(output, expected(pattern), torch.float32)


def test_a_module_that_says_nothing_is_causal_without_a_mask() -> None:
    output, _ = attention_function(SimpleNamespace(training=False), *tensors(), None)
    assert_close(output, expected(ph.Causal()), torch.float32)


def test_one_query_without_a_mask_sees_all() -> None:
    output, _ = attention_function(module(), *tensors(q_len=1), None)
    assert_close(output, expected(ph.Full(), q_len=1), torch.float32)


def test_the_mask_decides_and_not_what_the_module_says_of_causality() -> None:
    output, _ = attention_function(module(), *tensors(), mask(FULL), is_causal=True)
    assert_close(output, expected(ph.Full()), torch.float32)


def test_causal_queries_without_a_mask_have_no_position_among_more_keys() -> None:
    with pytest.raises(UnsupportedError, match="2 queries and 7 keys, so their positions are not known"):
        attention_function(module(), *tensors(q_len=2), None)


def test_weights_are_over_all_keys_of_a_cache() -> None:
    given = tensors(q_len=3, kv_len=7)
    output, weights = attention_function(module(), *given, mask(CAUSAL, q_len=3), output_attentions=True)
    assert weights is not None
    assert weights.shape == (BATCH, HEADS, 3, 7)
    assert not weights[..., 3:].any()  # which is empty yet
    values = given[2].repeat_interleave(HEADS // KV_HEADS, dim=1)
    assert_close(output, (weights @ values).transpose(1, 2), torch.float32)


def test_a_mask_of_one_sequence_is_every_sequences() -> None:
    padding = torch.tensor([[False, False, True, True, True, True, True]])
    one = lazy_mask(batch_size=1, q_length=7, kv_length=7, mask_function=CAUSAL, attention_mask=padding)
    both = mask(CAUSAL, attention_mask=padding.expand(BATCH, -1))
    first, second = (attention_function(module(), *tensors(), each)[0] for each in (one, both))
    assert torch.equal(first, second)


def test_weights_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    kept, dropped = (
        attention_function(module(training=training), *tensors(), mask(CAUSAL), dropout=0.5)[0]
        for training in (False, True)
    )
    assert_close(kept, expected(ph.Causal()), torch.float32)
    assert not torch.allclose(kept, dropped)


# --- the window, which both the module and the mask know


@pytest.mark.parametrize(
    ("function", "window"),
    [
        (WINDOW, 3),
        (WINDOW, 5),
        (CAUSAL, 7),
        (CAUSAL, 0),
        (CAUSAL, None),
        (masking.sliding_window_bidirectional_mask_function(3), 3),
        (masking.sliding_window_bidirectional_mask_function(3), 4),
        (masking.chunked_causal_mask_function(3, torch.zeros(BATCH, dtype=torch.int64)), 3),
    ],
    ids=["same", "wider", "longer than the text", "none, said as 0", "none", "inclusive", "exclusive", "chunks"],
)
def test_a_window_that_the_mask_keeps_is_no_contradiction(function: Any, window: int | None) -> None:
    attended, _ = attention_function(module(), *tensors(), mask(function), sliding_window=window)
    assert attended.isfinite().all()


@pytest.mark.parametrize(
    ("attention_mask", "window", "says"),
    [
        (mask(CAUSAL), 3, r"sliding_window=3, and its mask says Causal\(\)"),
        (mask(WINDOW), 2, "sliding_window=2, and its mask says SlidingWindow"),
        (mask(masking.sliding_window_bidirectional_mask_function(3)), 2, "sliding_window=2, and its mask says"),
        (mask(FULL), 4, r"and its mask says Full\(\)"),
        (None, 4, r"and its mask says Causal\(\)"),
    ],
)
def test_a_window_that_the_mask_has_lost_is_an_error(attention_mask: Any, window: int, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        attention_function(module(), *tensors(), attention_mask, sliding_window=window)


# --- what is refused

READ_NOWHERE = {
    "position_bias": "a bias for each pair",
    "indices": "keys that scores have picked",
    "block_indices": "keys that scores have picked",
    "cu_seq_lens_q": "packed beside the mask",
    "seq_idx": "packed beside the mask",
    "cache": "which is not read",
    "flavour": "which is not read",
}


@pytest.mark.parametrize("name", READ_NOWHERE)
def test_an_argument_that_is_not_read_is_refused_by_name(name: str) -> None:
    says = f"SimpleNamespace passes {name} to its attention function: .*{READ_NOWHERE[name]}"
    with pytest.raises(UnsupportedError, match=says):
        attention_function(module(), *tensors(), mask(CAUSAL), **{name: torch.zeros(1)})
    attention_function(module(), *tensors(), mask(CAUSAL), **{name: None})


def test_what_models_hand_on_to_all_their_functions_changes_nothing() -> None:
    handed = {"position_ids": torch.arange(7)[None], "use_cache": True, "output_router_logits": False}
    plain, more = (attention_function(module(), *tensors(), mask(CAUSAL), **given)[0] for given in ({}, handed))
    assert torch.equal(plain, more)


def test_a_mask_with_elements_is_refused() -> None:
    given = torch.zeros(BATCH, 1, 7, 7)
    with pytest.raises(UnsupportedError, match=r"\[2, 1, 7, 7\] of torch.float32, and no pattern can be read off"):
        attention_function(module(), *tensors(), given)


@pytest.mark.parametrize("shape", [(2, 7), (7, 6)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match="with 2 sequences of 7 queries and 7 keys"):
        attention_function(module(), *tensors(), mask(CAUSAL, *shape))
