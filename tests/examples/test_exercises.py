"""The exercises of the textbook, in Python and on the command line; docs/exercises.md explains them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.cli.main import main

MINE = ph.AttentionSpec(
    storage=ph.Grouped(num_heads=1, head_dim=2, v_head_dim=4),
    position=ph.Rotary(pairs="interleaved", direction="reversed"),
    pattern=ph.Causal(),
    weighting=ph.Differential(form="clipped", lambda_init=0.5),
)
ALONE = ("causal", "rope", "differential")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the rows that the command line gives as JSON, by name."""
    with pytest.raises(SystemExit, match="0"):
        main(["compare", *arguments, "--json"])
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


# --- 1: predict, then verify, "mat" under causal attention ----------------------------------------


def test_nothing_comes_after_mat_so_causal_attention_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pattern = ph.mechanism("causal").spec.pattern
    keys = np.arange(5)
    assert pattern.allowed(np.array([4]), keys, kv_len=5, head=0).all()  # the prediction
    rows = printed(capsys, "--token", "mat", "--mechanism", "causal", "--mechanism", "scaled-dot-product")
    assert rows["causal"]["output"] == rows["scaled-dot-product"]["output"]
    assert rows["causal"]["output"] == pytest.approx([0.4206, 0.1588, 0.3176, 0.2618], abs=5e-5)
    [reason] = {
        d.reason
        for d in ph.AttentionComparison().differences("mat")
        if (d.first, d.second) == ("scaled-dot-product", "causal")
    }
    assert reason == "both patterns let this token see the same keys"


def test_what_cat_may_still_see_keeps_its_proportions() -> None:
    table = ph.AttentionComparison().table("cat")
    standard, causal = table["scaled-dot-product"].weights, table["causal"].weights
    np.testing.assert_allclose(causal[:2], standard[:2] / standard[:2].sum(), atol=1e-15)
    assert not causal[2:].any()


# --- 2 and 3: how large the cache is, and what fits ------------------------------------------------


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return what a command prints as JSON."""
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_how_large_the_cache_is_at_128k(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row["gib"] for row in asked(capsys, "tables", "memory")["memory"]}
    per_token = {"MHA": 2 * 32 * 128, "GQA-8": 2 * 8 * 128, "MQA": 2 * 128, "MLA, 512 and a RoPE key of 64": 576}
    for name, numbers in per_token.items():
        assert rows[name] == 2 * numbers * 131_072 * 32 / 2**30


def test_a_stack_for_256k_tokens_on_one_gpu_of_80_gb(capsys: pytest.CaptureFixture[str]) -> None:
    plan = asked(capsys, "plan", "--model", "llama-3-8b", "--context", "262144", "--device", "a100-80")
    best = plan["stacks"][0]
    assert best["kinds"] == {"storage": "gqa", "position": "rope", "pattern": "causal", "weighting": "softmax"}
    assert best["memory_bytes"]["total"] <= 80 * 2**30
    too_large = [stack for stack in plan["dropped"] if stack["kinds"]["pattern"] == "causal"]
    assert {stack["kinds"]["storage"] for stack in too_large} == {"mha"}


# --- 4: where "cat" looks most --------------------------------------------------------------------


def test_what_cat_attends_to_most_and_the_ratio_of_the_two(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed(capsys, "--token", "cat", "--mechanism", "differential", "--mechanism", "scaled-dot-product")
    tops = {}
    for name, row in rows.items():
        top = max(row["weights"])
        tops[name] = top
        assert row["key_tokens"][row["weights"].index(top)] == {"differential": "sat"}.get(name, "The")
    assert tops["differential"] / tops["scaled-dot-product"] == pytest.approx(1.35, abs=0.005)


def test_why_it_is_sharper() -> None:
    """Both maps like "The", so it is cancelled; the rest is small until it is rescaled."""
    fitted = ph.AttentionComparison().result("differential").fitted
    scores = np.einsum("hd,hkd->hk", fitted.query[:, 1], fitted.key) / np.sqrt(2)
    first, second = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    the, cat, sat, on, mat = first - 0.5 * second
    assert first[0] == pytest.approx(first[2])  # "The" and "sat" are liked equally by the one
    assert second[0] == pytest.approx(second[3])  # and "The" and "on" by the other
    assert second[0] == second.max()
    assert sat > the > cat > 0 > mat > on
    assert sat == pytest.approx(0.300, abs=0.0005)
    assert the + cat + sat + on + mat == pytest.approx(0.5)


# --- 5: causal, RoPE and differential in one spec -------------------------------------------------


def test_a_combination_is_added_and_compared_with_each_alone() -> None:
    comparison = ph.AttentionComparison().add("mine", MINE)
    distances = {d.first: d.distance for d in comparison.differences("cat") if d.second == "mine" and d.first in ALONE}
    assert min(distances.values()) > 0.05
    assert min(distances, key=distances.__getitem__) == "causal"
    np.testing.assert_allclose(comparison.run("mine", "cat").output, by_hand(1), atol=1e-14)


def by_hand(i: int) -> Any:
    """Return a token's output under the combination, from the example's numbers alone."""
    query, key, value = (np.array(rows, float) for rows in (ph.EXAMPLE.query, ph.EXAMPLE.key, ph.EXAMPLE.value))
    weights = np.zeros(5)
    for part, factor in ((slice(0, 2), 1.0), (slice(2, 4), -0.5)):
        q = query[i, part]
        turned = [  # the angle between the two positions turns the query against the key, one radian a token
            np.array([np.cos(j - i) * q[0] - np.sin(j - i) * q[1], np.sin(j - i) * q[0] + np.cos(j - i) * q[1]])
            for j in range(i + 1)
        ]
        score = np.array([turned[j] @ key[j, part] / np.sqrt(2) for j in range(i + 1)])
        weights[: i + 1] += factor * np.exp(score) / np.exp(score).sum()
    kept = np.maximum(weights, 0)
    return kept @ value / kept.sum()


@pytest.mark.parametrize("token", range(5))
def test_every_token_of_the_combination_is_what_its_formula_says(token: int) -> None:
    row = ph.AttentionComparison().add("mine", MINE).run("mine", token)
    np.testing.assert_allclose(row.output, by_hand(token), atol=1e-14)


def test_each_part_makes_a_difference() -> None:
    parts = {
        "causal": replace(MINE, pattern=ph.Full()),
        "RoPE": replace(MINE, position=ph.NoPosition()),
        "differential": replace(MINE, storage=ph.Grouped(num_heads=1, head_dim=4), weighting=ph.Softmax()),
    }
    comparison = ph.AttentionComparison().add("mine", MINE)
    for name, spec in parts.items():
        without = comparison.add(f"without {name}", spec).run(f"without {name}", "cat")
        assert np.abs(without.weights - comparison.run("mine", "cat").weights).max() > 0.02, name
    assert comparison.run("mine", "cat").top[0] == "The"
    assert comparison.run("without causal", "cat").top[0] == "sat"


def test_the_command_line_takes_the_combination_as_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(MINE.to_json(indent=2), encoding="utf-8")
    asked = [word for name in ALONE for word in ("--mechanism", name)]
    rows = printed(capsys, "--spec", str(path), *asked)
    assert set(rows) == {*ALONE, "mine"}
    assert rows["mine"]["output"] == ph.AttentionComparison().add("mine", MINE).run("mine", "cat").output.tolist()
