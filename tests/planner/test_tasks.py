"""What each task asks of a model, and which attention cannot do it."""

from __future__ import annotations

import pytest

import polyhead as ph
from polyhead.cost import (
    Precision,
    cache_bytes,
    decode_work,
    prefill_work,
    training_memory,
    training_work,
)
from polyhead.errors import UnknownNameError
from polyhead.planner.options import variants
from polyhead.planner.tasks import TASKS, Load, cannot, memory_of, prompt_work, reach, task_of, token_work

LLAMA, T5 = ph.model("llama-3-8b"), ph.model("t5-base")


def load(task: str, context: int = 5000, **more: object) -> Load:
    return Load(task=task_of(task), context=context, batch=1, precision=Precision(), **more)  # type: ignore[arg-type]


def with_kinds(**wanted: str) -> ph.Model:
    found = (one for one in variants(LLAMA, window=4096) if wanted.items() <= one.kinds.items())
    return next(found).model


def test_a_prompt_and_the_tokens_after_it_make_the_context() -> None:
    asked = load("generate")
    assert prompt_work(LLAMA, asked) == prefill_work(LLAMA, 5000 - 256)
    assert token_work(LLAMA, asked) == decode_work(LLAMA, 5000)
    assert asked.written == 256
    assert load("generate", 1).written == 0
    assert token_work(LLAMA, load("generate", 1)) is None
    assert load("retrieve").written == 32


def test_a_stream_has_no_prompt_and_an_encoder_no_token() -> None:
    assert prompt_work(LLAMA, load("stream")) is None
    assert token_work(LLAMA, load("stream")) == decode_work(LLAMA, 5000)
    assert token_work(LLAMA, load("encode")) is None
    assert memory_of(LLAMA, load("encode")).cache.ideal == 0


def test_a_translation_reads_and_writes_as_much() -> None:
    asked = load("translate", 300)
    assert prompt_work(T5, asked) == prefill_work(T5, 1, context_length=300)
    assert token_work(T5, asked) == decode_work(T5, 300, context_length=300)
    assert asked.written == 300
    kept = cache_bytes(T5.layers, 300).ideal + cache_bytes(T5.cross_layers, 300, context_length=300).ideal
    assert memory_of(T5, asked).cache.ideal == kept


def test_a_step_of_training() -> None:
    asked = load("train", devices=4)
    assert prompt_work(LLAMA, asked) == training_work(LLAMA, 5000)
    assert memory_of(LLAMA, asked) == training_memory(LLAMA, 5000, devices=4)


@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ("generate", ph.model("bigbird-base"), "queries see later tokens"),
        ("stream", LLAMA, "its cache grows"),
        ("stream", ph.model("mistral-7b-v0.1"), "more than 131,040 tokens back is out of every layer's reach"),
        ("retrieve", ph.model("mistral-7b-v0.1"), "no layer sees more than 4,096 tokens"),
        ("translate", LLAMA, "nothing in it attends to another sequence"),
    ],
)
def test_what_cannot_do_it(task: str, model: ph.Model, said: str) -> None:
    assert said in str(cannot(model, load(task, 200_000)))


def test_what_can() -> None:
    assert cannot(LLAMA, load("generate")) is None
    assert cannot(LLAMA, load("retrieve")) is None
    assert cannot(ph.model("mistral-7b-v0.1"), load("stream", 131_040)) is None
    assert cannot(ph.model("mistral-7b-v0.1"), load("retrieve", 4096)) is None
    assert cannot(with_kinds(weighting="linear"), load("stream", 2**30)) is None
    assert cannot(ph.model("bigbird-base"), load("encode")) is None
    assert cannot(T5, load("translate")) is None
    assert cannot(ph.model("bigbird-base"), load("train")) is None


def test_windows_reach_further_through_layers() -> None:
    assert reach(ph.model("mistral-7b-v0.1").layers) == 32 * 4095


def test_an_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match="did you mean translate"):
        task_of("translat")
    assert list(TASKS) == ["generate", "retrieve", "stream", "encode", "translate", "train"]


def test_one_pass_holds_the_widest_tensor_of_a_layer() -> None:
    found = memory_of(LLAMA, load("encode", 16_384))
    assert found.temporary == pytest.approx(2 * 16_384 * 14_336, rel=0.01)  # the feed-forward layer's
