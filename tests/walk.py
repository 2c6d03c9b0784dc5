"""Ways through a product of choices: of the whole, which is slow, a part in every run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def walk(names: str, *factors: Mapping[str, Any] | Sequence[Any], one_in: int = 2, indirect: Sequence[str] = ()) -> Any:
    """Parametrise a test over a product, of which every run takes one combination in so many.

    Of three factors or more that have as many values, each pair of values still meets in every run.

    Args:
        names: The test's arguments, one for each factor, parted by commas.
        *factors: The values of each argument; a mapping gives them names.
        one_in: Of how many combinations one is tested in every run; the others are slow.
        indirect: Arguments that are fixtures.

    Returns:
        The decorator.
    """
    choices = [list(f.items()) if isinstance(f, Mapping) else [(str(x), x) for x in f] for f in factors]
    params = [
        pytest.param(
            *(value for _, (_, value) in combination),
            id="-".join(name for _, (name, _) in combination),
            marks=pytest.mark.slow if sum(place for place, _ in combination) % one_in else (),
        )
        for combination in itertools.product(*map(enumerate, choices))
    ]
    return pytest.mark.parametrize(names.split(", "), params, indirect=list(indirect))
