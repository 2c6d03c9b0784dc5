"""The knobs of the fifteen: the textbook's, and those for other inputs."""

import dataclasses

import pytest

from polyhead.catalog import EXAMPLE, TEXTBOOK, Mechanism, Settings, mechanisms
from polyhead.spec import AttentionSpec, BigBird, Global, Grouped, Rotary, SlidingWindow


def test_the_textbooks_conventions_are_not_the_defaults() -> None:
    assert Settings().rotary == Rotary(theta=10_000.0, pairs="half", direction="paper")
    assert TEXTBOOK.rotary == Rotary(theta=10_000.0, pairs="interleaved", direction="reversed")
    assert (Settings().shared_head, TEXTBOOK.shared_head) == ("mean", "first")
    assert (Settings().alibi_slopes, TEXTBOOK.alibi_slopes) == (None, (1.0,))


def test_textbook() -> None:
    assert (TEXTBOOK.num_heads, TEXTBOOK.num_groups) == (2, 2)
    assert (TEXTBOOK.bias_slope, TEXTBOOK.max_distance) == (0.5, 4)
    assert (TEXTBOOK.lambda_init, TEXTBOOK.latent_rank, TEXTBOOK.tile) == (0.5, 2, 2)
    assert TEXTBOOK.feature_map == "elu+1"
    assert TEXTBOOK.window == SlidingWindow(left=1, right=1)


def test_textbook_bigbird_draws_no_link() -> None:
    assert TEXTBOOK.bigbird == SlidingWindow.symmetric(1) | Global(first=1)
    assert Settings().bigbird == BigBird(radius=2, num_global=1, num_random=1)


def test_every_distance_of_the_example_has_an_entry_of_its_own() -> None:
    assert TEXTBOOK.max_distance == len(EXAMPLE.tokens) - 1


@pytest.mark.parametrize("entry", mechanisms(), ids=lambda entry: entry.name)
@pytest.mark.parametrize("width", [2, 4, 64])
def test_defaults_are_legal_on_one_head_of_any_even_width(entry: Mechanism, width: int) -> None:
    spec = entry.substitute(AttentionSpec(storage=Grouped(num_heads=1, head_dim=width)), Settings())
    assert AttentionSpec.from_json(spec.to_json()) == spec


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TEXTBOOK.tile = 4  # type: ignore[misc]
