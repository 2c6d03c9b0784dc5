"""What a peer is: a name, and a function from a case's tensors to what it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from polyhead.bench.work import Run, Work
from polyhead.spec import AttentionSpec


class Contender(NamedTuple):
    """What a peer runs on a case's tensors.

    Attributes:
        run: Returns the output, and in training the gradients.
        same: Whether it computes the function that ours does, so that both must agree.
        spec: What it computes in our words, where that is not the case's own spec: the blocks that it drew itself.
    """

    run: Run
    same: bool
    spec: AttentionSpec | None = None


class Peer(NamedTuple):
    """Someone to be compared with.

    Attributes:
        title: Who it is.
        build: Returns what it runs, or why it cannot.
    """

    title: str
    build: Callable[[Work], Contender | str]


def missing(module: str, package: str, error: ImportError) -> str:
    """Say that a peer's module cannot be imported, and what to type."""
    install = f"type: pip install '{package}'"
    if error.name == module:
        return f"{module} is not installed; {install}"
    return f"{module} cannot be imported ({error}); {install}"
