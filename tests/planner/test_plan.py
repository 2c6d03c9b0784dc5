"""The plan: what fits is ranked, what does not is dropped with by how much, and costs are monotone."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import polyhead as ph
from polyhead.catalog.device import calibrated_file
from polyhead.cost import decode_work, memory, prefill_work, seconds
from polyhead.errors import SpecError, UnknownNameError
from polyhead.planner import Plan, Preferences, Stack
from polyhead.planner.data import to_data
from polyhead.planner.options import Variant, changed
from polyhead.planner.plan import most, planning
from polyhead.planner.words import changes as changes_of, sentences

A100 = ph.device("a100-80")


@pytest.fixture(scope="module")
def long() -> Plan:
    return ph.plan("llama-3-8b", context=131_072, device="a100-80")


def named(plan: Plan, **wanted: str) -> Stack:
    kinds = plan.own.variant.kinds | wanted  # type: ignore[union-attr]
    return next(one for one in (*plan.stacks, *plan.dropped) if one.variant.kinds == kinds)


def test_what_fits_is_ranked_and_the_rest_is_dropped(long: Plan) -> None:
    assert long.best is long.own
    scores = [stack.score for stack in long.stacks]
    assert scores == sorted(scores)
    assert all(stack.memory.total <= A100.memory and not stack.over for stack in long.stacks)
    assert long.dropped
    for stack in long.dropped:
        assert stack.over == stack.memory.total - A100.memory > 0
        assert stack.variant.kinds["storage"] == "mha"


def test_prices_are_those_of_cost(long: Plan) -> None:
    for stack in (*long.stacks[:5], *long.dropped[:5]):
        model = stack.variant.model
        assert stack.memory == memory(model, 131_072)
        assert stack.token == seconds(decode_work(model, 131_072), A100)
        assert stack.prompt == seconds(prefill_work(model, 131_072 - 256), A100)
        assert stack.request == pytest.approx(stack.prompt.total + 256 * stack.token.total)
        assert stack.objective == stack.request


def test_a_score_is_the_objective_times_what_changes_must_be_worth(long: Plan) -> None:
    for stack in long.stacks:
        expected = stack.objective * stack.way.factor * 1.1 ** len(stack.variant.changed)
        assert stack.score == pytest.approx(expected)


def test_what_is_preferred_decides() -> None:
    nothing = Preferences(each_choice=1, half_percent=1, most=1, not_measured=1, conversion=1, retraining=1)
    greedy = ph.plan("llama-3-8b", context=131_072, device="a100-80", prefer=nothing)
    assert greedy.best is not None
    assert greedy.best.objective == min(stack.objective for stack in greedy.stacks)
    cautious = ph.plan("llama-3-8b", context=131_072, device="rtx-4090", prefer=Preferences(not_measured=1000))
    assert cautious.best is not None
    assert None not in cautious.best.way.quality.values()
    with pytest.raises(SpecError, match=r"conversion=0\.5 is below 1"):
        Preferences(conversion=0.5)


def test_a_longer_context_than_the_model_was_trained_on_takes_something(long: Plan) -> None:
    assert long.own is not None
    assert long.own.way.needs == "conversion"
    assert "RoPE" in long.own.way.how[0]
    trained = ph.plan("llama-3.1-8b", context=131_072, device="a100-80").own
    assert trained is not None
    assert (trained.way.needs, trained.way.how) == ("nothing", ())
    bloom = ph.plan("bloom-7b1", context=4096, device="a100-80").own
    assert bloom is not None
    assert bloom.way.needs == "nothing"  # ALiBi goes on by itself
    gpt2 = ph.plan("gpt2", context=4096, device="a100-80").own
    assert gpt2 is not None
    assert gpt2.way.needs == "retraining"  # its table of positions ends


def test_a_conversion_counts_what_was_measured_after_one(long: Plan) -> None:
    latent, multi_query = named(long, storage="mla"), named(long, storage="mqa")
    assert latent.way.needs == "retraining"  # as converted, perplexity is four times as high
    assert (multi_query.way.needs, multi_query.way.how[0][:9]) == ("conversion", "key/value")
    assert named(long, pattern="window-first").way.needs == "nothing"


def test_nothing_is_converted_where_nothing_is_trained() -> None:
    for options in ({"task": "train", "devices": 8}, {"from_scratch": True}):
        found = ph.plan("llama-3-8b", context=8192, device="h100", **options)  # type: ignore[arg-type]
        assert not found.is_trained
        assert found.own is not None
        assert found.own.name == "MHA + RoPE + causal + softmax"
        assert {stack.way.needs for stack in found.stacks} == {"training"}


def test_a_models_own_choices_are_not_held_against_it() -> None:
    for name, context, device in (("falcon-7b", 2048, "b200"), ("gpt2", 1024, "l4"), ("bloom-7b1", 2048, "a100-80")):
        found = ph.plan(name, context=context, device=device)
        assert found.best is found.own
        assert found.own is not None
        assert (found.own.way.factor, found.own.way.quality) == (1.0, {})
    retrieving = ph.plan("llama-3-8b", context=8192, device="a100-80", task="retrieve").own
    assert retrieving is not None
    assert list(retrieving.way.quality) == [("weighting", "softmax")]  # of which the task's own domain tells


def test_a_stack_that_cannot_be_split_is_refused_and_the_others_are_not() -> None:
    found = ph.plan("qwen2-7b", context=1000, device="h100", devices=4)
    assert found.best is found.own
    assert found.refused
    assert all(why.startswith("14 heads cannot be split between 4 devices") for why in found.refused.values())


def test_a_model_to_be_trained_has_its_own_attention_among_the_others() -> None:
    found = ph.plan("smollm2-135m", context=1000, device="l4", from_scratch=True)
    own = next(one for one in found.stacks if one.variant.model.layers == found.model.layers)
    assert own.variant.changed == ("storage",)
    gpt_oss = ph.plan(
        "gpt-oss-120b", context=1000, device="b200", devices=2, from_scratch=True, precision="weights=int4"
    )
    assert any(one.variant.model.layers == gpt_oss.model.layers for one in (*gpt_oss.stacks, *gpt_oss.dropped))


def test_what_is_left_out_follows_from_the_model() -> None:
    found = ph.plan("t5-base", device="l4")
    assert (found.load.task.name, found.load.context, found.load.written) == ("translate", 512, 512)
    assert ph.plan("bigbird-base", device="l4", context=128).load.task.name == "encode"
    assert ph.plan("gpt2", device="l4", written=10).load.written == 10
    assert ph.plan("gpt2", device="l4", context=4, written=10).load.written == 3


def test_paths_are_taken_as_paths(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(dict(ph.model("gpt2").config)), encoding="utf-8")
    (tmp_path / "device.json").write_text(A100.to_json(), encoding="utf-8")
    assert ph.plan(tmp_path, device=tmp_path / "device.json").device == A100
    for wrong in ({"model": 3}, {"device": 3}):
        with pytest.raises(ph.ShapeError, match="is a int; give a"):
            ph.plan(**{"model": "gpt2", "device": "l4", **wrong})  # type: ignore[arg-type]


def test_products_are_made_in_the_wider_of_their_formats() -> None:
    mixed = ph.plan("llama-3-8b", context=1000, device="a100-80", precision="activations=int8")
    assert mixed.own is not None
    plain = ph.plan("llama-3-8b", context=1000, device="a100-80").own
    assert plain is not None
    assert mixed.own.prompt.computing == plain.prompt.computing  # type: ignore[union-attr]


def test_throughput_takes_as_many_sequences_as_fit() -> None:
    found = ph.plan("llama-3-8b", context=8192, device="a100-80", optimise="throughput")
    own = found.own
    assert own is not None
    assert memory(found.model, 8192, batch=own.batch).total <= A100.memory
    assert memory(found.model, 8192, batch=own.batch + 1).total > A100.memory
    assert own.objective == pytest.approx(own.request / own.batch)  # type: ignore[operator]


def test_devices_share_what_can_be_shared() -> None:
    one, four = (ph.plan("llama-3-70b", context=8192, device="h100", devices=n) for n in (2, 4))
    assert one.own is not None
    assert four.own is not None
    assert four.own.memory.cache.ideal == one.own.memory.cache.ideal / 2
    latent = ph.plan("deepseek-v2-lite", context=8192, device="h100", devices=4).own
    alone = ph.plan("deepseek-v2-lite", context=8192, device="h100").own
    assert latent is not None
    assert alone is not None
    assert latent.memory.cache.ideal == alone.memory.cache.ideal
    assert any(
        "lies on all of them" in text
        for text in sentences(ph.plan("deepseek-v2", context=10, device="h100", devices=2))
    )
    with pytest.raises(SpecError, match="32 heads cannot be split between 3 devices"):
        ph.plan("llama-3-8b", context=100, device="h100", devices=3)


def test_what_is_not_known_is_said() -> None:
    found = ph.plan("llama-3-8b", context=8192, device="m3-max")
    assert found.objective == "memory"
    assert "rate at which it multiplies is not known" in found.notes[0]
    assert all(stack.request is None for stack in found.stacks)
    with pytest.raises(SpecError, match=r"nothing can be said of latency.*optimise='memory'.*polyhead calibrate"):
        ph.plan("llama-3-8b", context=8192, device="m3-max", optimise="latency")
    with pytest.raises(SpecError, match="no rate is known for fp8, but for float32, bf16"):
        ph.plan("llama-3-8b", context=8192, device="a100-80", precision="fp8")
    assert ph.plan("llama-3-8b", context=8192, device="a100-80", precision="weights=fp8,cache=fp8").best is not None


def test_this_machine_has_memory_and_rates_once_it_was_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    bare = ph.plan("smollm2-135m", context=100)
    assert bare.objective == "memory"
    calibrated_file().parent.mkdir()
    measured = dataclasses.replace(bare.device, bandwidth=1e10, rates={"float32": 1e11}, reached={"cache": 0.5})
    calibrated_file().write_text(measured.to_json(), encoding="utf-8")
    timed = ph.plan("smollm2-135m", context=100)
    assert (timed.objective, timed.load.precision.weights) == ("latency", "float32")
    elsewhere = dataclasses.replace(measured, title="another machine")
    calibrated_file().write_text(elsewhere.to_json(), encoding="utf-8")
    assert ph.plan("smollm2-135m", context=100).objective == "memory"
    file = tmp_path / "device.json"
    file.write_text(dataclasses.replace(A100, memory=2**30).to_json(), encoding="utf-8")
    assert ph.plan("llama-3-8b", context=100, device=str(file)).best is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model": "llama-4-8b"}, UnknownNameError, "did you mean llama-3-8b"),
        ({"device": "a100"}, UnknownNameError, "did you mean .*a100-80"),
        ({"task": "sing"}, UnknownNameError, "use one of generate, retrieve"),
        ({"optimise": "beauty"}, UnknownNameError, "use one of latency"),
        ({"context": 0}, SpecError, "context=0"),
        ({"batch": 0}, SpecError, "batch=0"),
        ({"devices": 0}, SpecError, "devices=0"),
        ({"window": 0}, SpecError, "window=0"),
        ({"context": 10**320}, SpecError, "past 1,099,511,627,776"),
        ({"written": 0}, SpecError, "written=0"),
        ({"precision": "fp9"}, UnknownNameError, "fp8"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ph.plan(**{"model": "llama-3-8b", "context": 100, "device": "a100-80", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "precision", "token"),
    [
        ("llama-3-8b", "bf16", 131_072),
        ("deepseek-v2-lite", "bf16", 31_104),
        ("deepseek-v2", "bf16", 69_120),
        ("mistral-7b-v0.1", "bf16", 131_072),
        ("falcon-7b", "bf16", 8192),
        ("gpt-oss-120b", "bf16", 73_728),
        ("llama-3-8b", "weights=int4,cache=fp8", 65_536),
    ],
)
def test_all_of_it_is_json_with_the_caches_bytes(name: str, precision: str, token: int) -> None:
    found = ph.plan(name, context=1000, device="b200", devices=1, precision=precision)
    data = json.loads(json.dumps(to_data(found)))
    assert data["cache_bytes_per_token"] == token
    assert len(data["stacks"]) == len(found.stacks)
    assert data["own"]["memory_bytes"]["total"] == found.own.memory.total  # type: ignore[union-attr]


def test_the_exercises_memory_at_256k() -> None:
    found = ph.plan("llama-3-8b", context=262_144, device="a100-80")
    gib = {
        ("mha", "causal"): 128.0,
        ("gqa", "causal"): 32.0,
        ("mqa", "causal"): 4.0,
        ("mla", "causal"): 9.0,
        ("gqa", "window"): 0.5,
    }
    for (storage, pattern), expected in gib.items():
        assert named(found, storage=storage, pattern=pattern).memory.cache.ideal == expected * 2**30
    assert named(found, storage="mha").over
    assert not named(found, storage="gqa").over


LONGER = st.integers(1, 20_000)
described = functools.cache(ph.model)  # from its config, which takes as long as to price it


def priced(variant: Variant | None = None, **options: object) -> Stack:
    """Price one stack alone, the model's own if no other is given."""
    model = described(str(options.pop("model", "llama-3-8b")))
    begun = planning(model, **{"device": "h100", "optimise": "latency", **options})  # type: ignore[arg-type]
    return begun.priced(variant or Variant(model=begun.base, changed=()))


@given(
    st.sampled_from(["llama-3-8b", "mistral-7b-v0.1", "gpt-oss-120b", "deepseek-v2-lite", "gemma-2-9b"]),
    LONGER,
    LONGER,
    st.integers(1, 4),
    st.sampled_from(["generate", "encode", "train"]),
)
def test_more_never_costs_less(name: str, context: int, more: int, batch: int, task: str) -> None:
    asked = {"model": name, "task": task, "context": context, "batch": batch, "precision": "fp8"}
    least = priced(**asked)
    for greater in ({"context": context + more}, {"batch": batch + 1}, {"precision": "bf16"}):
        stack = priced(**{**asked, **greater})
        assert stack.memory.total >= least.memory.total
        assert stack.request >= least.request  # type: ignore[operator]


@given(LONGER, st.integers(1, 5000), st.integers(0, 5000))
def test_a_wider_window_never_costs_less(context: int, window: int, more: int) -> None:
    def windowed(size: int) -> Stack:
        pattern = ph.SlidingWindow.causal(size)
        other = changed(described("llama-3-8b"), lambda spec, _: dataclasses.replace(spec, pattern=pattern))
        return priced(Variant(model=other, changed=("pattern",)), context=context)

    narrow, wide = windowed(window), windowed(window + more)
    assert narrow.memory.total <= wide.memory.total
    assert narrow.request <= wide.request  # type: ignore[operator]


@given(LONGER, st.floats(1, 10), st.floats(1, 10), st.floats(1, 10), st.sampled_from(["generate", "encode", "train"]))
def test_a_device_with_more_of_everything_is_never_slower(
    context: int, reads: float, counts: float, holds: float, task: str
) -> None:
    assert A100.bandwidth is not None
    rates = {name: rate * counts for name, rate in A100.rates.items()}
    memory = int(A100.memory * holds)
    better = dataclasses.replace(A100, memory=memory, bandwidth=A100.bandwidth * reads, rates=rates)
    before, after = (priced(device=one, context=context, task=task) for one in (A100, better))
    assert after.over <= before.over
    assert after.request <= before.request  # type: ignore[operator]


@given(st.integers(0, 500), st.integers(1, 20), st.integers(20, 400))
def test_the_most_that_fits(limit: int, least: int, largest: int) -> None:
    expected = 0 if limit < least else min(limit, largest)
    assert most(lambda number: number <= limit, least, largest) == expected


def test_a_plan_prints_what_it_says(long: Plan) -> None:
    text = str(long)
    assert text.startswith("Keep GQA-8 + RoPE + causal + softmax, trained on 8,192 tokens; 131,072 take a scaling")
    assert all(sentence in text for sentence in (*sentences(long), *changes_of(long)))
