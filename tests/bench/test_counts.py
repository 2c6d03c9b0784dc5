"""What a case computes follows from its spec."""

from __future__ import annotations

import dataclasses

import pytest

from polyhead.bench.case import Case
from polyhead.bench.cases import case
from polyhead.bench.counts import useful_operations


def small(name: str, **changes: object) -> Case:
    return dataclasses.replace(case(name).at(16), **changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", 8 * 16 * 16 * 4 * 64),
        ("causal", 8 * 136 * 4 * 64),
        ("causal-cached", 8 * (15 + 16) * 4 * 64),
        ("differential", 8 * 136 * 2 * (2 * 64 + 128)),
        ("linear", 8 * 16 * 2 * 64 * (64 + 65)),
        ("mla", 16 * 136 * 2 * (192 + 128) + 2 * 16 * 16 * 256 * 512),
        ("t5-layer", 8 * 16 * 16 * 4 * 64 + 2 * 16 * 4 * 512 * 512),
        ("train-window", 3.5 * 8 * 136 * 4 * 64),
        ("train-t5-layer", 3.5 * 8 * 16 * 16 * 4 * 64 + 3 * 2 * 16 * 4 * 512 * 512),
    ],
)
def test_operations(name: str, expected: float) -> None:
    assert useful_operations(small(name)) == expected
