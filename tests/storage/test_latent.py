"""A latent expanded to the keys and values of every head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.oracle.attend import expand
from polyhead.storage import latent
from tests.inputs import INPUTS, Inputs, spec
from tests.tolerances import assert_close


@pytest.mark.parametrize("weighting", [ph.Softmax(), ph.Differential(form="clipped")])
def test_each_map_s_key_is_its_part_of_the_latent_beside_the_shared_rope_key(weighting: Any) -> None:
    inputs = Inputs.draw(spec("mla", weighting=weighting), 0)
    params = {name: x for name, x in inputs.tensors(torch.float64).items() if name not in INPUTS}
    stored = torch.tensor(inputs.learned["key"])
    key, value = latent.expand(stored, params, inputs.spec)
    rows, rope_key = stored[:, 0, :, :6], stored[:, 0, :, 6:]
    assert key.shape == (2, 4 * inputs.spec.num_maps, 5, 12)
    assert value.shape == (2, 4, 5, 5)
    for index in range(key.shape[1]):
        assert_close(key[:, index, :, :4], rows @ params["w_uk"][index].T, torch.float64)
        assert torch.equal(key[:, index, :, 4:], rope_key)
    for head in range(4):
        assert_close(value[:, head], rows @ params["w_uv"][head].T, torch.float64)


def test_it_is_the_oracle_s_expansion() -> None:
    inputs = Inputs.draw(spec("mla"), 1)
    params = {name: inputs.learned[name] for name in ("w_uk", "w_uv")}
    tensors = inputs.tensors(torch.float64)
    ours = latent.expand(tensors["key"], tensors, inputs.spec)
    for batch in range(2):
        theirs = expand({"key": inputs.learned["key"][batch]}, inputs.spec, params)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one[batch], other, torch.float64)


def test_without_a_rope_key_there_is_only_the_latent_s_part() -> None:
    storage = ph.Latent(num_heads=2, kv_lora_rank=3, qk_nope_head_dim=4, qk_rope_head_dim=0, v_head_dim=5)
    inputs = Inputs.draw(ph.AttentionSpec(storage=storage, pattern=ph.Causal()), 2)
    tensors = inputs.tensors(torch.float64)
    assert latent.expand(tensors["key"], tensors, inputs.spec)[0].shape == (2, 2, 5, 4)
    assert_close(inputs.attend(torch.float64), inputs.oracle(), torch.float64)
