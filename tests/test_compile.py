"""`torch.compile` and `torch.export` of `attend` and of the layer: one graph, the same numbers, gradients too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests.inputs import INPUTS, VARIED, Inputs, spec
from tests.tolerances import assert_close

# Random links are hashed in NumPy's uint64, which torch's compiler does not trace: they need a graph break.
CHOICES = {"full": {}, "causal": {"pattern": ph.Causal()}, **VARIED}


@pytest.fixture(autouse=True)
def no_compiled_code_is_left() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(choices: dict[str, Any], storage: str, backend: str) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 0, q_len=6, kv_len=6)
    compiled = torch.compile(inputs.attend, fullgraph=True, backend=backend)
    results = []
    for run in (inputs.attend, compiled):
        leaves = inputs.tensors(torch.float32, requires_grad=True)
        output = run(leaves)
        output.square().sum().backward()
        results.append({"output": output, **{name: leaf.grad for name, leaf in leaves.items()}})
    for name, expected in results[0].items():
        assert_close(results[1][name], expected, torch.float32, what=name)


ALONE = ("masked", "sink and T5", "paper")
"""Choices with which `attend` is compiled by itself in every run; with each it is a part of a layer's graph below."""


@pytest.mark.parametrize(
    "choices",
    [pytest.param(CHOICES[name], id=name, marks=() if name in ALONE else pytest.mark.slow) for name in CHOICES],
)
def test_attend_is_one_graph(choices: dict[str, Any]) -> None:
    check_compiled(choices, "gqa", "aot_eager")


@pytest.mark.slow
def test_a_latent_is_one_graph() -> None:
    check_compiled({"position": ph.Rotary(), "pattern": ph.Causal()}, "mla", "aot_eager")


@pytest.mark.parametrize(
    ("kernel", "storage", "choices"),
    [
        ("dense", "gqa", {}),
        ("plain", "gqa", {}),
        ("absorbed", "mla", {}),
        ("linear", "gqa", {"weighting": ph.Linear()}),
    ],
)
def test_nothing_of_a_masked_key_reaches_a_row_of_compiled_code(
    kernel: str, storage: str, choices: dict[str, Any]
) -> None:
    """Compiled code cannot look whether a result is finite, so what is masked must be blanked before."""
    mask = np.array([[True, False, True, True, True]] * 2)
    inputs = Inputs.draw(spec(storage, **choices), 1).giving(key_mask=mask)
    tensors = inputs.tensors(torch.float64)
    for name in {"key", "value"} & set(tensors):
        tensors[name][:, :, 1] = torch.nan
    given: dict[str, Any] = {name: tensors.pop(name, None) for name in INPUTS}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(key_mask: torch.Tensor) -> torch.Tensor:
        return ph.attend(**given, spec=inputs.spec, params=tensors, key_mask=key_mask, kernel=kernel)

    assert_close(run(torch.tensor(mask)), inputs.oracle(), torch.float64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_attend_compiles_to_machine_code(choices: dict[str, Any]) -> None:
    check_compiled(choices, "gqa", "inductor")


# --- the layer

EMBED_DIM = 16
MLA = {"storage": "mla", "position": ph.Rotary(), "pattern": ph.Causal()}
LAYERS: dict[str, dict[str, Any]] = {**CHOICES, "latent": MLA}


def layer_of(choices: dict[str, Any] | ph.AttentionSpec) -> ph.Attention:
    torch.manual_seed(0)
    whole = choices if isinstance(choices, ph.AttentionSpec) else spec(**{"storage": "gqa", **choices})
    return ph.Attention(whole, embed_dim=EMBED_DIM)


def check_layer(choices: dict[str, Any], backend: str) -> None:
    layer = layer_of(choices)
    x = torch.randn(2, 6, EMBED_DIM)
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        leaf = x.clone().requires_grad_()
        output = run(leaf)
        names, leaves = zip(("x", leaf), *layer.named_parameters(), strict=True)
        grads = torch.autograd.grad(output.square().sum(), leaves)
        results.append({"output": output, **dict(zip(names, grads, strict=True))})
    for name, expected in results[0].items():
        assert_close(results[1][name], expected, torch.float32, what=name)


@pytest.mark.parametrize("choices", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_one_graph(choices: dict[str, Any]) -> None:
    check_layer(choices, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("choices", LAYERS.values(), ids=LAYERS)
def test_a_layer_compiles_to_machine_code(choices: dict[str, Any]) -> None:
    check_layer(choices, "inductor")


NARROW = ph.Latent(num_heads=4, kv_lora_rank=4, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
EXPORTED: dict[str, dict[str, Any] | ph.AttentionSpec] = {
    "full": {},
    "causal": {"pattern": ph.Causal()},
    "RoPE": {"storage": "mha", "pattern": ph.Causal(), "position": ph.Rotary()},
    "grouped": {"pattern": ph.Causal(), "position": ph.Rotary(pairs="interleaved")},
    "window": {"pattern": ph.SlidingWindow.causal(3), "position": ph.Rotary()},
    "latent": MLA,
    "narrow latent": ph.AttentionSpec(storage=NARROW, position=ph.Rotary(), pattern=ph.Causal()),
}


# Each choice of "causal" and of "RoPE" is in "grouped" or in "window" too.
@pytest.mark.parametrize(
    "choices",
    [
        pytest.param(choices, id=name, marks=pytest.mark.slow if name in ("causal", "RoPE") else ())
        for name, choices in EXPORTED.items()
    ],
)
def test_an_exported_layer_runs_at_other_lengths(choices: dict[str, Any] | ph.AttentionSpec) -> None:
    layer = layer_of(choices)
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(layer, (torch.randn(2, 6, EMBED_DIM),), dynamic_shapes={"x": {1: tokens}})
    for length in (2, 9, 64):
        x = torch.randn(2, length, EMBED_DIM)
        assert_close(program.module()(x), layer(x), torch.float32, what=f"output at {length} tokens")


DECODED: dict[str, dict[str, Any]] = {
    "growing": {"pattern": ph.Causal(), "position": ph.Rotary()},
    "rolling": {"pattern": ph.SlidingWindow.causal(3), "position": ph.Rotary()},
    "state": {"pattern": ph.Causal(), "position": ph.Rotary(), "weighting": ph.Linear()},
    "latent": MLA,
}


def check_decoding(choices: dict[str, Any], backend: str, chunks: list[int]) -> None:
    """Check decoding with a compiled layer; the cache may break its graph."""
    layer = layer_of(choices)
    caches = {run: layer.new_cache(batch=2, max_seq_len=16) for run in (layer, torch.compile(layer, backend=backend))}
    for count in chunks:
        x = torch.randn(2, count, EMBED_DIM)
        expected, ours = (run(x, cache=cache) for run, cache in caches.items())
        assert_close(ours, expected, torch.float32)
    one, other = caches.values()
    assert one.lengths == other.lengths == (sum(chunks),) * 2


@pytest.mark.parametrize("name", ["growing", "rolling"])
def test_a_compiled_layer_decodes_as_it_does_in_python(name: str) -> None:
    check_decoding(DECODED[name], "eager", [4, 1, 1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("choices", DECODED.values(), ids=DECODED)
def test_machine_code_decodes_as_python_does(choices: dict[str, Any]) -> None:
    check_decoding(choices, "inductor", [4, 1, 1, 3])
