"""One mechanism as a special case of another: groups, windows, latents, maps, kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests.inputs import Array, Inputs, spec
from tests.tolerances import assert_close

LENGTH = 7

CHOICES: dict[str, dict[str, Any]] = {
    "softmax": {"pattern": ph.Causal()},
    "rope": {"position": ph.Rotary(), "weighting": ph.Softmax(softcap=3.0)},
    "alibi": {"position": ph.Alibi(), "weighting": ph.Softmax(sink=True)},
    "linear": {"weighting": ph.Linear(), "position": ph.Rotary(), "pattern": ph.Causal()},
    "shaw": {"position": ph.RelativeBias.shaw(max_distance=2)},
    "differential": {"weighting": ph.Differential(form="clipped")},
}
by_choices = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


def grouped(num_kv_heads: int, choices: dict[str, Any]) -> ph.AttentionSpec:
    return ph.AttentionSpec(storage=ph.Grouped(num_heads=4, num_kv_heads=num_kv_heads, head_dim=8), **choices)


@by_choices
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_shared_heads_are_repeated_heads(num_kv_heads: int, choices: dict[str, Any]) -> None:
    """MQA and GQA are MHA with each key and value head given again to every query head of its group."""
    shared = Inputs.draw(grouped(num_kv_heads, choices), 0, q_len=LENGTH, kv_len=LENGTH)
    maps = shared.spec.num_maps

    def repeated(array: Array, maps: int) -> Array:
        per_head = array.reshape(2, num_kv_heads, maps, *array.shape[2:]).repeat(4 // num_kv_heads, axis=1)
        return per_head.reshape(2, 4 * maps, *array.shape[2:])

    heads = {"key": repeated(shared.learned["key"], maps), "value": repeated(shared.learned["value"], 1)}
    each = dataclasses.replace(shared.changing(**heads), spec=grouped(4, choices))
    assert_close(shared.attend(torch.float64), each.oracle(), torch.float64)


@by_choices
def test_as_many_groups_as_heads_is_multi_head(choices: dict[str, Any]) -> None:
    assert grouped(4, choices) == ph.AttentionSpec(storage=ph.Grouped(num_heads=4, head_dim=8), **choices)


@pytest.mark.parametrize(
    "choices",
    [CHOICES[name] for name in ("softmax", "rope", "alibi", "shaw", "differential")],
    ids=lambda c: str(c)[:20],
)
@pytest.mark.parametrize("kernel", ["auto", "plain"])
def test_a_window_as_long_as_the_sequence_is_causal(choices: dict[str, Any], kernel: str) -> None:
    by_size = {
        size: spec("gqa", **{**choices, "pattern": ph.SlidingWindow.causal(size)}) for size in (LENGTH - 1, LENGTH)
    }
    causal = Inputs.draw(spec("gqa", **{**choices, "pattern": ph.Causal()}), 1, q_len=LENGTH, kv_len=LENGTH)
    long, short = (
        dataclasses.replace(causal, spec=by_size[size]).attend(torch.float64, kernel=kernel)
        for size in (LENGTH, LENGTH - 1)
    )
    assert_close(long, causal.attend(torch.float64, kernel=kernel), torch.float64)
    assert (short - long)[:, :, -1].abs().min() > 1e-9, "one shorter, the last query loses the first key"
    assert_close(short[:, :, :-1], long[:, :, :-1], torch.float64)


@pytest.mark.parametrize(
    "choices",
    [
        {"position": ph.Rotary(pairs="interleaved"), "pattern": ph.Causal()},
        {"weighting": ph.Softmax(sink=True)},
        {"position": ph.Rotary(), "weighting": ph.Linear()},
        {"position": ph.Alibi(), "weighting": ph.Differential()},
        {"position": ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=3))},
    ],
)
def test_a_latent_is_the_keys_and_values_that_it_expands_to(choices: dict[str, Any]) -> None:
    """W_UK·c beside the shared RoPE key, and W_UV·c, given to `Grouped` as ordinary keys and values."""
    latent = Inputs.draw(spec("mla", **choices), 2, q_len=LENGTH, kv_len=LENGTH)
    storage = latent.spec.storage
    rows, rope_key = np.split(latent.learned["key"][:, 0], [storage.kv_lora_rank], axis=-1)
    nope = np.einsum("btr,mdr->bmtd", rows, latent.learned["w_uk"])
    shared = np.repeat(rope_key[:, None], nope.shape[1], axis=1)
    value = np.einsum("btr,hdr->bhtd", rows, latent.learned["w_uv"])
    # Grouped turns leading widths, so the RoPE part comes first
    key, query = np.concatenate([shared, nope], axis=-1), latent.learned["query"]
    query = np.concatenate([query[..., storage.qk_nope_head_dim :], query[..., : storage.qk_nope_head_dim]], axis=-1)
    position = latent.spec.position
    if isinstance(position, ph.Rotary):
        position = dataclasses.replace(position, rotary_dim=storage.qk_rope_head_dim)
    widths = {"head_dim": storage.qk_head_dim, "v_head_dim": storage.v_head_dim}
    heads = ph.Grouped(num_heads=storage.num_heads, **widths)
    expanded = dataclasses.replace(latent.spec, storage=heads, position=position)
    params = {name: latent.learned[name] for name in expanded.parameter_shapes()}
    by_hand = Inputs(expanded, {"query": query, "key": key, "value": value, **params})
    assert_close(latent.attend(torch.float64), by_hand.attend(torch.float64), torch.float64)


# --- differential


def test_with_lambda_0_the_weights_are_the_first_map_s() -> None:
    for form in ("paper", "diffllama", "clipped"):
        inputs = Inputs.draw(
            spec("gqa", weighting=ph.Differential(form=form, lambda_init=0.0)), 3, q_len=LENGTH, kv_len=LENGTH
        )
        inputs = inputs.changing(**{n: np.zeros(8) for n in inputs.learned if n.startswith("lambda")})
        heads = inputs.spec.num_heads
        first = [inputs.spec.map_of(head, 0) for head in range(heads)]
        query = inputs.learned["query"][:, [q for q, _ in first]]
        key = inputs.learned["key"][:, [k for _, k in first]]
        one_map = Inputs(spec("mha"), {"query": query, "key": key, "value": np.zeros_like(key)})
        ours = inputs.attend(torch.float64, return_weights=True)[1]
        assert_close(ours, one_map.oracle(return_weights=True)[1], torch.float64)


def test_diffllama_pairs_other_maps_than_the_paper() -> None:
    """Maps i and i + H/2 of H make a head, not 2i and 2i + 1: the same numbers in the other order."""
    paper = Inputs.draw(spec("gqa", weighting=ph.Differential()), 4, q_len=LENGTH, kv_len=LENGTH)
    llama = dataclasses.replace(paper, spec=spec("gqa", weighting=ph.Differential(form="diffllama")))
    reordered = {}
    for name in ("query", "key"):
        array = paper.learned[name]
        reordered[name] = np.concatenate([array[:, 0::2], array[:, 1::2]], axis=1)
    learned = {name: array for name, array in paper.changing(**reordered).learned.items() if name != "sub_norm"}
    same = dataclasses.replace(llama, learned=learned)
    plain_norm = paper.changing(sub_norm=np.ones(16))
    assert_close(same.attend(torch.float64), plain_norm.attend(torch.float64), torch.float64)


# --- rows of weights


@pytest.mark.parametrize(
    ("weighting", "total"),
    [
        (ph.Softmax(), 1.0),
        (ph.Softmax(softcap=2.0), 1.0),
        (ph.Linear(), 1.0),
        (ph.Linear(feature_map="softplus"), 1.0),
        (ph.Differential(form="clipped"), 1.0),
        (ph.Differential(lambda_init=0.3), 0.7),
        (ph.Differential(form="diffllama", lambda_init=0.6), 0.4),
    ],
    ids=repr,
)
def test_the_weights_of_a_row_sum_to(weighting: Any, total: float) -> None:
    inputs = Inputs.draw(spec("gqa", weighting=weighting, pattern=ph.Causal()), 5, q_len=LENGTH, kv_len=LENGTH)
    inputs = inputs.changing(**{n: np.zeros(8) for n in inputs.learned if n.startswith("lambda")})
    for weights in (inputs.attend(torch.float64, return_weights=True)[1], inputs.oracle(return_weights=True)[1]):
        assert_close(np.asarray(weights).sum(-1), np.full(weights.shape[:3], total), torch.float64)


def test_a_sink_takes_its_share() -> None:
    inputs = Inputs.draw(spec("mha", weighting=ph.Softmax(sink=True)), 6, q_len=LENGTH, kv_len=LENGTH)
    _, weights = inputs.attend(torch.float64, return_weights=True)
    without = dataclasses.replace(
        inputs, spec=spec("mha"), learned={n: inputs.learned[n] for n in ("query", "key", "value")}
    )
    scores = inputs.learned["query"] @ inputs.learned["key"].swapaxes(-1, -2) / np.sqrt(8)
    kept = np.exp(scores).sum(-1) / (np.exp(scores).sum(-1) + np.exp(inputs.learned["sinks"])[:, None])
    assert_close(weights.sum(-1), kept, torch.float64)
    assert_close(weights, without.oracle(return_weights=True)[1] * kept[..., None], torch.float64)


# --- linear


@pytest.mark.parametrize("feature_map", ["elu+1", "relu", "softplus"])
def test_linear_attention_is_a_recurrence(feature_map: str) -> None:
    """The paper's eqs. 18-20: a state of φ(k)vᵀ and a sum of φ(k), updated token by token."""
    inputs = Inputs.draw(
        spec("mha", weighting=ph.Linear(feature_map=feature_map), pattern=ph.Causal()), 7, q_len=LENGTH, kv_len=LENGTH
    )
    maps = {
        "elu+1": lambda x: np.where(x > 0, x + 1, np.exp(x)),
        "relu": lambda x: np.maximum(x, 0),
        "softplus": lambda x: np.log1p(np.exp(x)),
    }
    query, key = (maps[feature_map](inputs.learned[name]) for name in ("query", "key"))
    value = inputs.learned["value"]
    state, norm = np.zeros((2, 4, 8, 8)), np.zeros((2, 4, 8))
    steps = []
    for t in range(LENGTH):
        state += key[:, :, t, :, None] * value[:, :, t, None, :]
        norm += key[:, :, t]
        numerator = np.einsum("bhd,bhdv->bhv", query[:, :, t], state)
        total = (query[:, :, t] * norm).sum(-1, keepdims=True)
        steps.append(np.divide(numerator, total, out=np.zeros_like(numerator), where=total != 0))
    assert_close(inputs.attend(torch.float64), np.stack(steps, axis=2), torch.float64)


# --- kernels


@pytest.mark.parametrize("storage", ["mha", "gqa", "mqa", "mla"])
@pytest.mark.parametrize(
    "pattern",
    [
        ph.Full(),
        ph.Causal(),
        ph.SlidingWindow(left=2, right=1),
        ph.BigBird(),
        ph.RandomLinks(per_query=1, seed=3, block=2),
        ph.Links(table=(((1,), (), (0, 2)),)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("q_len", [1, 4, LENGTH])
def test_the_dense_and_the_plain_kernel_compute_one_function(
    storage: str, pattern: Any, dtype: torch.dtype, q_len: int
) -> None:
    inputs = Inputs.draw(spec(storage, pattern=pattern, position=ph.Rotary()), 8, q_len=q_len, kv_len=LENGTH)
    mask = np.random.default_rng(0).random((2, LENGTH)) < 0.7
    for case in (inputs, inputs.giving(key_mask=mask)):
        results = []
        for kernel in ("dense", "plain"):
            leaves = case.tensors(dtype, requires_grad=True)
            output = case.attend(leaves, kernel=kernel)
            (output * torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)).sum().backward()
            results.append({"output": output, **{name: leaf.grad for name, leaf in leaves.items()}})
        for name, ours in results[0].items():
            assert_close(ours, results[1][name], dtype, what=name)
