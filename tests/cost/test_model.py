"""A whole model's bytes and work: sums over its layers and what is around them, split between devices."""

from __future__ import annotations

import dataclasses
import math

import pytest

import polyhead as ph
from polyhead.cost import attended, cache_bytes, decode_step, prefill, training_memory, training_work
from polyhead.cost.model import Seconds, decode_work, feed_forward_width, memory, prefill_work, seconds
from polyhead.errors import SpecError

LLAMA = ph.model("llama-3-8b")


def test_memory_is_weights_and_cache() -> None:
    found = memory(LLAMA, 8192, batch=2)
    assert found.weights == 2 * LLAMA.parameters
    assert found.cache == cache_bytes(LLAMA.layers, 8192, batch=2)
    assert found.total == found.weights + found.cache.ideal + found.temporary
    assert memory(LLAMA, 8192, precision="weights=int4").weights == math.ceil(LLAMA.parameters / 2)


def test_every_layer_by_its_own_spec() -> None:
    model = ph.model("gpt-oss-120b")
    assert memory(model, 1).cache.ideal == 73_728
    assert memory(model, 50_000).cache == cache_bytes(model.layers, 50_000)


@pytest.mark.parametrize(
    ("name", "devices", "copies"),
    [
        ("llama-3-8b", 4, 1),  # two of eight key/value heads on each
        ("llama-3-8b", 8, 1),
        ("llama-3-8b", 32, 4),  # each key/value head on four
        ("falcon-7b", 71, 71),  # the one on all
        ("deepseek-v2-lite", 8, 8),  # a latent is no head's
    ],
)
def test_what_devices_share(name: str, devices: int, copies: int) -> None:
    model = ph.model(name)
    alone, split = memory(model, 4096), memory(model, 4096, devices=devices)
    assert split.weights == math.ceil(alone.weights / devices)
    assert split.cache.ideal * devices == alone.cache.ideal * copies


def test_heads_that_cannot_be_split() -> None:
    with pytest.raises(SpecError, match="32 heads cannot be split between 3 devices"):
        memory(LLAMA, 10, devices=3)


def test_an_encoder_and_its_decoder() -> None:
    model = ph.model("t5-base")
    found = memory(model, 100, context_length=700)
    assert (
        found.cache.ideal
        == cache_bytes(model.layers, 100).ideal + cache_bytes(model.cross_layers, 100, context_length=700).ideal
    )
    longer = prefill_work(model, 100, context_length=1400)
    assert longer.useful > prefill_work(model, 100, context_length=700).useful
    with pytest.raises(SpecError, match="context_length"):
        prefill_work(model, 100)


def test_a_prompt_is_two_operations_for_each_weight_it_meets_and_the_pairs() -> None:
    tokens = 512
    attention = sum((prefill(layer, tokens).useful for layer in LLAMA.layers), 0.0)
    table = LLAMA.vocab_size * LLAMA.embed_dim
    layers = sum(math.prod(shape) for layer in LLAMA.layers for shape in layer.parameter_shapes().values())
    around = LLAMA.parameters - layers - 2 * table
    assert prefill_work(LLAMA, tokens).useful == attention + 2 * tokens * around + 2 * table


def test_a_token_reads_every_weight_once_but_the_embeddings() -> None:
    attention = sum((decode_step(layer, 1000).moved for layer in LLAMA.layers), 0.0)
    layers = sum(math.prod(shape) for layer in LLAMA.layers for shape in layer.parameter_shapes().values())
    table = LLAMA.vocab_size * LLAMA.embed_dim
    assert decode_work(LLAMA, 1000).moved == attention + 2 * (LLAMA.parameters - layers - table)
    tied = ph.model("smollm2-135m")
    assert tied.tied_embeddings
    assert not LLAMA.tied_embeddings
    weights = decode_work(tied, 1).moved / 2
    assert tied.parameters <= weights <= 1.01 * tied.parameters


def test_experts_are_read_as_they_are_met() -> None:
    model = ph.model("mixtral-8x7b")
    one, more, many = (decode_work(model, 10, batch=batch).moved for batch in (1, 2, 1000))
    assert 2 * model.active_parameters * 0.9 < one < 2 * model.active_parameters
    assert one < more <= many
    assert many > 2 * (model.parameters - model.vocab_size * model.embed_dim)


def test_seconds_are_those_of_the_slower_part() -> None:
    device = ph.device("a100-80")
    token, prompt = decode_work(LLAMA, 4096), prefill_work(LLAMA, 4096)
    assert seconds(token, device) == Seconds(computing=token.executed / 312e12, moving=token.moved / 2039e9)
    assert (seconds(token, device).bound, seconds(prompt, device).bound) == ("bandwidth", "compute")
    assert seconds(token, device).total == token.moved / 2039e9
    assert seconds(token, device, devices=4).total == pytest.approx(seconds(token, device).total / 4)


def test_what_is_not_known_is_said() -> None:
    token = decode_work(LLAMA, 10)
    with pytest.raises(SpecError, match="no rate is known for fp8"):
        seconds(token, ph.device("a100-80"), precision="fp8")
    with pytest.raises(SpecError, match="bandwidth is not known"):
        seconds(token, dataclasses.replace(ph.device("a100-80"), bandwidth=None))


@pytest.mark.parametrize("name", [model.name for model in ph.models() if not model.encoder_layers])
def test_more_never_takes_less(name: str) -> None:
    model = ph.model(name)
    if name == "bigbird-base":
        with pytest.raises(SpecError, match="later keys"):
            memory(model, 64)
        return
    device = ph.device("h100")
    for length, batch in ((64, 1), (5000, 3)):
        small = memory(model, length, batch=batch)
        times = [seconds(work(model, length, batch=batch), device).total for work in (prefill_work, decode_work)]
        for more in ({"length": 2 * length, "batch": batch}, {"length": length, "batch": batch + 1}):
            assert memory(model, **more).total >= small.total
            for work, before in zip((prefill_work, decode_work), times, strict=True):
                assert (
                    seconds(work(model, **{_ARGUMENT[work]: more["length"]}, batch=more["batch"]), device).total
                    >= before
                )


_ARGUMENT = {prefill_work: "tokens", decode_work: "length"}


def test_what_is_reached_of_a_devices_rates() -> None:
    device = dataclasses.replace(
        ph.device("a100-80"),
        reached={"products": 0.5, "pairs": 0.25, "weights": 0.8, "cache": 0.4},
        layer_seconds=1e-5,
    )
    for work in (decode_work(LLAMA, 4096), prefill_work(LLAMA, 4096)):
        found = seconds(work, device)
        products, around = work.executed - work.attending, work.moved - work.cached
        assert found.computing == pytest.approx((products / 0.5 + work.attending / 0.25) / 312e12)
        assert found.moving == pytest.approx((around / 0.8 + work.cached / 0.4) / 2039e9)
        assert found.fixed == pytest.approx(32e-5)
        assert found.total == max(found.computing, found.moving) + found.fixed
    assert Seconds(computing=1.0, moving=2.0, fixed=3.0).bound == "steps"


def test_a_cache_that_lies_on_several_devices_is_read_on_each() -> None:
    work, device = decode_work(LLAMA, 100_000), ph.device("a100-80")
    split, copied = (seconds(work, device, devices=4, copies=copies).moving for copies in (1, 4))
    assert copied - split == pytest.approx(0.75 * work.cached / 2039e9)


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "gemma-2-2b"])
def test_a_training_step_is_six_operations_for_each_weight_a_token_meets(name: str) -> None:
    model, tokens = ph.model(name), 64
    found = training_work(model, tokens, batch=2)
    tables = model.vocab_size * model.embed_dim * (1 if model.tied_embeddings else 2)
    met = model.active_parameters - tables + model.vocab_size * model.embed_dim
    assert found.useful - 3 * sum(_attended(layer, tokens, 2) for layer in model.layers) == pytest.approx(
        6 * 2 * tokens * met, rel=1e-3
    )


def test_a_layer_that_is_computed_again_is_executed_four_times() -> None:
    step, forward = training_work(LLAMA, 512), prefill_work(LLAMA, 512)
    assert step.executed / forward.executed == pytest.approx(4, rel=0.2)
    assert step.useful / forward.useful == pytest.approx(3, rel=0.2)


def test_a_feed_forward_layers_width() -> None:
    assert feed_forward_width(LLAMA) == pytest.approx(3 * 14_336, rel=1e-3)
    assert feed_forward_width(ph.model("gpt2")) == pytest.approx(2 * 3072, rel=0.2)  # with its table of positions


def _attended(layer: ph.LayerSpec, tokens: int, batch: int) -> float:
    return batch * attended(layer.attention, tokens, tokens)


def test_what_a_training_step_keeps() -> None:
    found = training_memory(LLAMA, 1000, batch=2)
    assert found.weights == 16 * LLAMA.parameters  # two bytes twice, and three numbers in float32
    assert training_memory(LLAMA, 1000, precision="float32").weights == 16 * LLAMA.parameters
    assert found.temporary > 2 * 2 * 1000 * 32 * 4096 + 4 * 2 * 1000 * LLAMA.vocab_size
    assert found.cache.ideal == 0
    assert training_memory(LLAMA, 1000, batch=2, devices=8).weights == 2 * LLAMA.parameters
    with pytest.raises(SpecError, match="tokens=0"):
        training_memory(LLAMA, 0)


def test_an_encoder_is_trained_with_its_decoder() -> None:
    model = ph.model("t5-base")
    assert training_work(model, 100, context_length=200).useful > training_work(model, 100, context_length=100).useful
