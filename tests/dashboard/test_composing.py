"""Answers about four choices: legal or not as the rules say, run by the kernel that would, at the library's costs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import polyhead as ph
from polyhead.catalog import mechanisms, models
from polyhead.cost import attended, cache_bytes
from polyhead.dashboard import composing
from polyhead.dashboard.composing import MAX_ROWS, compose, explain
from polyhead.dashboard.requests import ComposeRequest, ExplainRequest, Parts
from polyhead.errors import MissingExtraError, SpecError
from polyhead.spec import AttentionSpec, LayerSpec
from polyhead.spec.composed import composed, parts_of
from tests.dashboard.conftest import Ask
from tests.strategies import specs

HEADS = {"type": "Grouped", "num_heads": 8, "num_kv_heads": 2, "head_dim": 16}
SPECS = {entry.name: entry.spec for entry in mechanisms()} | {one.name: one.layers[0].attention for one in models()}
PLACES = ("storage", "position", "pattern", "weighting")


def asked(spec: AttentionSpec, **sizes: Any) -> ComposeRequest:
    return ComposeRequest(spec=Parts(**parts_of(spec)), **sizes)


@pytest.mark.parametrize("name", SPECS)
def test_a_legal_spec_is_told_of_as_the_library_does(name: str) -> None:
    pytest.importorskip("torch")
    spec = SPECS[name]
    found = compose(asked(spec, q_len=4, kv_len=64))
    for member, value in composed(spec).items():
        if member not in ("kernel", "cost"):
            assert found[member] == value
    picked = ph.explain(spec, q_len=4, kv_len=64)
    assert found["kernel"] == {"name": picked.kernel, "summary": picked.summary, "others": picked.others}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("dtype", "precision", "times"), [("bfloat16", "bf16", 1), ("float64", "float32", 2)])
def test_costs_are_the_librarys(name: str, dtype: str, precision: str, times: int) -> None:
    spec, tokens = SPECS[name], 100
    own = compose(asked(spec, kv_len=tokens, dtype=dtype))["cost"]["own"]
    layer = LayerSpec(attention=spec, embed_dim=spec.num_heads * spec.v_head_dim)
    assert own["prompt"] == attended(spec, tokens, tokens)
    assert own["uncounted"] is None
    if own["no_cache"] is not None:
        assert (own["bytes"], own["token_bytes"], own["step"]) == (None, None, None)
        with pytest.raises(SpecError, match=re.escape(own["no_cache"])):
            cache_bytes([layer], tokens)
        return
    kept, more = (times * cache_bytes([layer], n, precision=precision).ideal for n in (tokens, tokens + 1))
    assert (own["bytes"], own["token_bytes"]) == (kept, more - kept)
    assert own["step"] > 0


def test_beside_a_spec_stands_multi_head_attention_over_its_pairs() -> None:
    spec = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=8, num_kv_heads=2, head_dim=16),
        position=ph.Rotary(),
        pattern=ph.SlidingWindow.causal(10),
        weighting=ph.Differential(),
    )
    mha = ph.AttentionSpec(storage=ph.Grouped(num_heads=8, head_dim=32), pattern=ph.SlidingWindow.causal(10))
    assert compose(asked(spec))["cost"]["mha"] == compose(asked(mha))["cost"]["own"]


def test_what_grows_and_what_does_not() -> None:
    heads = ph.Grouped(num_heads=8, num_kv_heads=2, head_dim=16)

    def more(**choices: Any) -> int:
        found = compose(asked(ph.AttentionSpec(storage=heads, **choices), kv_len=4096, dtype="bfloat16"))
        bytes_of_one: int = found["cost"]["own"]["token_bytes"]
        return bytes_of_one

    assert more(pattern=ph.Causal()) == 2 * (2 * 16 + 2 * 16)
    assert more(pattern=ph.SlidingWindow.causal(100)) == 0
    assert more(pattern=ph.Causal(), weighting=ph.Linear()) == 0


def test_choices_that_are_not_defined_together(ask: Ask) -> None:
    body = {"spec": {"storage": HEADS, "weighting": {"type": "Linear"}, "position": {"type": "Alibi"}}}
    found = ask("compose", body).json()
    assert not found["legal"]
    assert found["reason"].startswith("Linear has no score that Alibi() could be added to")
    assert found["nearest"]["position"] == {"type": "NoPosition"}
    nearest = ask("compose", {"spec": found["nearest"]}).json()
    assert nearest["legal"]
    assert nearest["spec_repr"] == found["nearest_repr"]
    others = {"spec", "spec_repr", "code", "picture", "kernel", "cost", "learns"}
    assert {name for name, value in found.items() if value is None} == others


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"storage": {"type": "Causal"}}, "no part of a spec has the type 'Causal'"),
        ({"storage": {"type": "Softmax"}}, r"storage=Softmax\(\) is not a storage"),
        ({"storage": HEADS, "pattern": HEADS}, "pattern=Grouped.* is not a pattern"),
        ({"storage": HEADS, "weighting": {"type": "Linear", "feature_map": "exp"}}, "feature_map='exp' is not allowed"),
        ({"storage": {**HEADS, "num_kv_heads": 3}}, "num_kv_heads=3 does not divide num_heads=8; use 1, 2, 4 or 8"),
    ],
)
def test_what_is_no_choice_by_itself_is_refused(parts: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        compose(ComposeRequest(spec=Parts(**parts)))


def test_without_torch_the_rest_is_told(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    def missing(module: str, extra: str, purpose: str) -> Any:
        raise MissingExtraError(f"{purpose} needs {module}")

    monkeypatch.setattr(composing, "require_extra", missing)
    found = compose(asked(SPECS["gqa"]))
    assert found["kernel"] == {"missing": "which kernel runs a spec needs torch"}
    assert found["cost"]["own"]["prompt"]
    response = ask("explain", {"spec": parts_of(SPECS["gqa"])})
    assert response.status_code == 424
    assert response.json()["error"]["type"] == "MissingExtraError"


@pytest.mark.parametrize("more", [{}, {"weights": True}, {"key_mask": True}, {"segments": True}, {"dropout": True}])
@pytest.mark.parametrize("name", ["gqa", "mla", "linear", "bigbird"])
def test_the_kernel_is_the_one_that_would_run(name: str, more: dict[str, bool]) -> None:
    torch = pytest.importorskip("torch")
    spec = SPECS[name]
    sizes = {"q_len": 300, "kv_len": 300, "dtype": "float16", "needs_grad": True, **more}
    found = explain(ExplainRequest(spec=Parts(**parts_of(spec)), **sizes))
    expected = ph.explain(spec, **{**sizes, "dtype": torch.float16})
    assert found == {
        "schema": 1,
        "kernel": expected.kernel,
        "summary": expected.summary,
        "others": expected.others,
    }


def test_links_are_not_counted_for_minutes() -> None:
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=64, head_dim=16), pattern=ph.RandomLinks(per_query=2, seed=0))
    longest = MAX_ROWS // 64
    counted, uncounted = (compose(asked(spec, kv_len=n))["cost"]["own"] for n in (longest, longest + 1))
    assert counted["prompt"] == attended(spec, longest, longest)
    assert (uncounted["prompt"], uncounted["step"]) == (None, None)
    assert uncounted["uncounted"].startswith(
        "the pairs of this pattern follow no formula, and listing those of 4,097 tokens"
    )
    assert uncounted["bytes"] > 0


@pytest.mark.parametrize("kv_len", [0, 1, 2**20])
@pytest.mark.parametrize("name", ["scaled-dot-product", "mla", "linear", "differential", "gpt-oss-120b"])
def test_any_length_is_answered(name: str, kv_len: int) -> None:
    found = compose(asked(SPECS[name], q_len=3, kv_len=kv_len))
    assert found["cost"]["own"]["prompt"] == attended(SPECS[name], kv_len, kv_len)


@settings(max_examples=40)
@given(specs())
def test_any_legal_spec_is_answered(ask: Ask, spec: AttentionSpec) -> None:
    response = ask("compose", {"spec": parts_of(spec), "q_len": 3, "kv_len": 200})
    assert response.status_code == 200, response.text
    assert response.json()["spec_repr"] == repr(spec)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.data())
def test_no_change_of_a_spec_is_worse_than_a_refusal(ask: Ask, data: st.DataObject) -> None:
    parts = parts_of(SPECS[data.draw(st.sampled_from(sorted(SPECS)))])
    place = data.draw(st.sampled_from(PLACES))
    field = data.draw(st.sampled_from(sorted(parts[place])))
    parts[place] = {**parts[place], field: data.draw(JSON)}
    response = ask("compose", {"spec": parts, "kv_len": 8})
    assert response.status_code in (200, 422), response.text
