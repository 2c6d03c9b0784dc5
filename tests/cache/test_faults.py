"""A call that fails in the middle, at any step of it, leaves a cache as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import polyhead as ph
from polyhead.cache import Cache
from polyhead.kernels import select
from tests.cache.helpers import (
    Kind,
    Tokens,
    assert_same_content,
    by_class,
    by_kind,
    content,
    left_as_it_was,
    of_kind,
)
from tests.tolerances import assert_close


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], list[int]]:
    """Make every kernel compute and then raise; how many keys it was given is noted."""

    def install(error: BaseException) -> list[int]:
        seen: list[int] = []

        def after(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def runs_and_raises(call: Any) -> Any:
                run(call)
                seen.append(call.case.kv_len)
                raise error

            return runs_and_raises

        kernels = tuple(kernel._replace(run=after(kernel.run)) for kernel in select.KERNELS)
        monkeypatch.setattr(select, "KERNELS", kernels)
        return seen

    return install


PIECES = {"one": (1, None), "few": (3, None), "many": (15, None), "ragged": (3, [1, 3]), "many ragged": (15, [2, 15])}
by_piece = pytest.mark.parametrize(
    ("count", "lengths"), PIECES.values(), ids=[name.replace(" ", "-") for name in PIECES]
)


@by_kind
@by_piece
@pytest.mark.parametrize(
    ("start", "error"), [(0, RuntimeError("out of memory")), (2, RuntimeError("no")), (9, KeyboardInterrupt("stopped"))]
)
def test_a_kernel_that_fails_leaves_no_trace(
    kind: Kind,
    count: int,
    lengths: list[int] | None,
    start: int,
    error: BaseException,
    failing: Callable[[BaseException], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = Tokens.draw(kind, 24)
    cache = tokens.filled(start)
    before = content(cache)
    seen = failing(error)
    with pytest.raises(type(error), match=str(error)):
        tokens.decode(cache, start, start + count, lengths=lengths)
    assert len(seen) == 1, "else nothing was appended"
    monkeypatch.undo()
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, start), tokens.expected()[:, :, start:], torch.float32)


@of_kind("growing", "rolling", "context")
def test_the_mask_that_a_failed_call_brought_is_gone(
    kind: Kind, failing: Callable[[BaseException], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6) if kind.source == "self" else tokens.new_cache()
    at, before = cache.length, content(cache)
    failing(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        tokens.decode(cache, at, at + 5, key_mask=torch.zeros(2, 5, dtype=torch.bool))
    monkeypatch.undo()
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, at), tokens.expected()[:, :, at:], torch.float32)


@of_kind("growing")
def test_a_cache_that_moved_for_a_failed_call_moves_back(
    kind: Kind, failing: Callable[[BaseException], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens.draw(kind, 70)
    cache = tokens.filled(63)
    with left_as_it_was(cache, tokens, 63):
        failing(RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            tokens.decode(cache, 63, 66)
        monkeypatch.undo()


class FailsAt(TorchDispatchMode):
    """Lets so many operations on tensors through, and then raises, once."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.left = operations
        self.failed = ""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == -1:
            self.failed = str(operation)
            raise KeyboardInterrupt(f"stopped before {operation}")
        return operation(*args, **(kwargs or {}))


def stopped_everywhere(make: Callable[[], Cache], act: Callable[[Cache], Any]) -> Iterator[tuple[Cache, str]]:
    """Yield the caches that are left when an action is stopped before its first operation, its second, and so on."""
    for operations in range(1000):
        cache = make()
        with FailsAt(operations) as mode:
            try:
                act(cache)
            except KeyboardInterrupt:
                pass
            else:
                return
        yield cache, mode.failed
    pytest.fail("it never came to its end")


def assert_untouched(before: dict[str, Any], caches: Iterator[tuple[Cache, str]]) -> None:
    for cache, failed in caches:
        assert cache.lengths == before["lengths"], f"stopped before {failed}"
        try:
            assert_same_content(content(cache), before)
        except (AssertionError, ValueError) as error:
            error.add_note(f"stopped before {failed}")
            raise


@by_class
@pytest.mark.parametrize(("count", "lengths"), [(1, None), (15, None), (3, [1, 3]), (15, [2, 15])], ids=str)
def test_a_call_stopped_at_any_operation_changes_nothing(kind: Kind, count: int, lengths: list[int] | None) -> None:
    tokens = Tokens.draw(kind, 24)
    filled = tokens.filled(9)
    piece, params = tokens.piece(filled, 9, 9 + count), tokens.params()

    def act(cache: Cache) -> None:
        ph.attend(**piece, spec=kind.spec, params=params, cache=cache, lengths=lengths)

    assert_untouched(content(filled), stopped_everywhere(filled.clone, act))


@by_class
@pytest.mark.parametrize("rows", [[1, 0], [0, 1, 1], [1]], ids=str)
def test_a_reorder_stopped_at_any_operation_changes_nothing(kind: Kind, rows: list[int]) -> None:
    filled = Tokens.draw(kind).filled(9)
    assert_untouched(content(filled), stopped_everywhere(filled.clone, lambda cache: cache.reorder(rows)))


@by_class
def test_a_reset_stopped_at_any_operation_changes_nothing(kind: Kind) -> None:
    filled = Tokens.draw(kind).filled(9)
    assert_untouched(content(filled), stopped_everywhere(filled.clone, lambda cache: cache.reset()))
