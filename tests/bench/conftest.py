"""A tiny run that several tests read, and how cases are made tiny."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from polyhead import bench
from polyhead.bench.case import Case, Target
from polyhead.bench.cases import case
from polyhead.bench.records import Record

SECONDS = 0.01
LONG = 1.0  # what one tiny run surely does not take


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sized(name: str, length: int = 32, **changes: Any) -> Case:
    return dataclasses.replace(case(name).at(length), **changes)


GROWING = sized("window", lengths=(16, 32, 64), peers=("sdpa",), targets=(Target(against="exponent", at_most=9.0),))


@pytest.fixture(scope="session")
def record(shortened: Callable[[], AbstractContextManager[None]]) -> Record:
    """Time two tiny cases: one with a peer and a target, one with growth."""
    with_target = sized("full", targets=(Target(against="sdpa", at_most=1e-9),))
    with shortened():
        return bench.run([with_target, GROWING], seconds=LONG, threads=1)
