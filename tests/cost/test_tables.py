"""The textbook's tables: its figures per token, its totals with the number of layers that they hold for."""

from __future__ import annotations

import dataclasses

import pytest

import polyhead as ph
from polyhead.cost.tables import BOOK_GIB, Shape, complexity, forces, memory
from polyhead.errors import SpecError, UnknownNameError

KIB = 1024


def test_memory_per_token_is_the_textbooks() -> None:
    rows = {row["name"]: row for row in memory(Shape())}
    expected = {
        "MHA": (16, 1),
        "MQA": (0.5, 32),
        "GQA-8": (4, 4),
        "MLA, a latent of 512 alone": (1, 16),
        "MLA, a latent of 128 alone": (0.25, 64),
        "MLA, 512 and a RoPE key of 64": (1.125, 16 / 1.125),
    }
    for name, (kib, times) in expected.items():
        assert (rows[name]["token_bytes"] / KIB, rows[name]["of_mha"]) == (kib, times)
    assert rows["linear"]["token_bytes"] is None


def test_totals_are_the_textbooks_for_eight_layers() -> None:
    rows = {row["name"]: row for row in memory(Shape())}
    for name, gib in BOOK_GIB.items():
        assert rows[name]["book_gib"] == rows[name]["book_layers_gib"] == gib
    assert [rows[name]["gib"] for name in BOOK_GIB] == [64, 16, 1]
    assert memory(Shape(num_layers=8))[0]["gib"] == 16


def test_a_window_keeps_its_tokens() -> None:
    rows = {row["name"]: row for row in memory(Shape(window=1000, context=500))}
    assert rows["MHA, a window of 1,000"]["gib"] == rows["MHA"]["gib"]
    rows = {row["name"]: row for row in memory(Shape(window=1000, context=5000))}
    assert rows["MHA, a window of 1,000"]["gib"] * 5 == rows["MHA"]["gib"]


def test_the_textbook_is_silent_at_other_sizes() -> None:
    for changes in ({"context": 4096}, {"embed_dim": 2048}, {"precision": "fp8"}):
        assert all(row["book_gib"] is None for row in memory(Shape(**changes)))


def test_complexity_of_the_fifteen() -> None:
    shape = Shape(embed_dim=256, num_heads=4, num_groups=2, context=4096, window=64, latent_rank=32)
    rows = {row["name"]: row for row in complexity(shape)}
    assert list(rows) == [entry.name for entry in ph.mechanisms()]
    baseline = 4 * 256 * 4096**2
    for name in ("scaled-dot-product", "mha", "cross", "mqa", "gqa", "rope", "alibi", "flash", "differential", "mla"):
        assert (rows[name]["operations"], rows[name]["exponent"], rows[name]["pairs"]) == (baseline, 2.0, 1.0)
    assert rows["causal"]["pairs"] == (4096 + 1) / (2 * 4096)
    assert rows["linear"]["exponent"] == pytest.approx(1.0)
    assert rows["sliding-window"]["pairs"] == pytest.approx(64 / 4096, rel=0.01)
    for name in ("sliding-window", "bigbird"):
        assert 1.0 < rows[name]["exponent"] < 1.1


def test_growth_at_an_odd_length() -> None:
    rows = {row["name"]: row for row in complexity(Shape(context=3))}
    assert rows["mha"]["exponent"] == pytest.approx(2.0)
    with pytest.raises(SpecError, match="at least 2 tokens"):
        complexity(Shape(context=1))


def test_forces_are_the_catalogues() -> None:
    for row, entry in zip(forces(), ph.mechanisms(), strict=True):
        assert dataclasses.asdict(entry.forces).items() <= row.items()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"num_heads": 3}, "not divisible"), ({"context": 0}, "context"), ({"window": 2.5}, "window")],
)
def test_what_is_wrong_is_said(changes: dict[str, int], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Shape(**changes)


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="fp8"):
        memory(Shape(precision="fp9"))
