"""What comparisons are made on: the example's own settings, and a few arrays that are forgotten in turn."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from polyhead.catalog import TEXTBOOK, Settings
from polyhead.dashboard.model import TextModel
from polyhead.dashboard.requests import ArraysSource, Comparison, ExampleSource, Settings as Asked, TextSource
from polyhead.dashboard.sources import MAX_ARRAYS, MAX_WIDTH, Recent, Sources
from polyhead.errors import ShapeError, SpecError, UnknownNameError, UnsupportedError
from tests.dashboard.test_arrays import npz

ROWS = np.random.default_rng(0).normal(size=(3, 6, 4))


@pytest.fixture
def sources() -> Sources:
    return Sources(TextModel(None))


def file(seed: int = 0, shape: tuple[int, ...] = (6, 4)) -> bytes:
    query, key, value = np.random.default_rng(seed).normal(size=(3, *shape))
    return npz(query=query, key=key, value=value)


def test_the_example_comes_with_the_textbooks_settings(sources: Sources) -> None:
    comparison = sources.comparison(Comparison())
    assert comparison.title == "shared example"
    assert comparison.settings == TEXTBOOK
    moved = sources.comparison(Comparison(settings=Asked(tile=3, rope_theta=50.0)))
    assert (moved.settings.tile, moved.settings.rotary.theta) == (3, 50.0)
    assert moved.settings.rotary.direction == TEXTBOOK.rotary.direction


def test_arrays_come_with_the_defaults(sources: Sources) -> None:
    kept = sources.keep_arrays(file(shape=(2, 6, 4)))
    assert (kept["tokens"], kept["num_heads"], kept["width"]) == (6, 2, 4)
    comparison = sources.comparison(Comparison(source=ArraysSource(id=kept["id"], head=1)))
    assert (comparison.settings, comparison.head) == (Settings(), 1)
    with pytest.raises(UnknownNameError, match="head=2 does not exist"):
        sources.comparison(Comparison(source=ArraysSource(id=kept["id"], head=2)))


def test_the_same_bytes_are_the_same_arrays(sources: Sources) -> None:
    assert sources.keep_arrays(file(1)) == sources.keep_arrays(file(1))
    assert sources.keep_arrays(file(1))["id"] != sources.keep_arrays(file(2))["id"]


def test_arrays_are_forgotten_in_turn(sources: Sources) -> None:
    ids = [sources.keep_arrays(file(seed))["id"] for seed in range(MAX_ARRAYS)]
    sources.comparison(Comparison(source=ArraysSource(id=ids[0])))  # which makes it the latest
    sources.keep_arrays(file(MAX_ARRAYS))
    sources.comparison(Comparison(source=ArraysSource(id=ids[0])))
    with pytest.raises(UnknownNameError, match=r"no arrays are kept as .*; send them again"):
        sources.comparison(Comparison(source=ArraysSource(id=ids[1])))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((513, 2), "there are 513 tokens and 1 heads, and the dashboard shows at most 512"),
        ((64, 300, 2), "there are 300 tokens and 64 heads, and the dashboard shows at most 256"),
        ((3, MAX_WIDTH + 1), f"heads are {MAX_WIDTH + 1} wide; the dashboard takes at most {MAX_WIDTH}"),
    ],
)
def test_what_a_screen_cannot_show_is_refused(sources: Sources, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        sources.keep_arrays(file(shape=shape))


def test_what_no_comparison_takes_is_refused(sources: Sources) -> None:
    with pytest.raises(ShapeError, match="query is not finite"):
        sources.keep_arrays(npz(query=ROWS[0] * np.nan, key=ROWS[1], value=ROWS[2]))


def test_combinations_of_ones_own_are_added(sources: Sources) -> None:
    spec = {"storage": {"type": "Grouped", "num_heads": 1, "head_dim": 4}, "pattern": {"type": "Chunked", "size": 2}}
    comparison = sources.comparison(Comparison(specs={"mine": spec}))
    assert comparison.names[-1] == "mine"
    with pytest.raises(SpecError, match="'rope' is taken"):
        sources.comparison(Comparison(specs={"rope": spec}))


def test_without_a_model_no_text_is_read(sources: Sources) -> None:
    with pytest.raises(UnsupportedError, match="no model was given; start with polyhead serve --model smollm2"):
        sources.comparison(Comparison(source=TextSource(text="hello")))


def test_a_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[Any, ...]] = []

    class Reader(TextModel):
        def read(self, text: str, *, layer: int, second_text: str | None, bare: bool) -> Any:
            read.append((text, layer, second_text, bare))
            return Sources(TextModel(None))._found(ExampleSource())[0], f"{text} in layer {layer}"

    sources = Sources(Reader(None))
    for _ in range(2):
        for head, layer, bare in ((0, 1, False), (0, 1, True), (0, 2, False)):
            source = TextSource(text="hello", layer=layer, bare=bare, head=head)
            assert sources.comparison(Comparison(source=source)).title == f"hello in layer {layer}"
    assert read == [("hello", 1, None, False), ("hello", 1, None, True), ("hello", 2, None, False)]


def test_recent_values_survive_threads() -> None:
    recent: Recent[int] = Recent(8)

    def work(seed: int) -> None:
        numbers = np.random.default_rng(seed).integers(0, 32, 2000).tolist()
        for number in numbers:
            if (found := recent.get(number)) is not None:
                assert found == number * number
            recent.keep(number, number * number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recent) == 8
