"""How many combinations are defined, and which rules refuse the others."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping

from polyhead.spec.rules import RULES, Refusal, refusal
from tests.compositions.choices import Combination, Sizes, combinations

SIZES = Sizes(num_heads=4, width=8, v_width=None, seed=0)


@functools.cache
def refusals() -> Mapping[Combination, Refusal | None]:
    """Return, for the whole product, why a combination is refused, or None."""
    return {combination: refusal(combination.choices(SIZES)) for combination in combinations()}


@dataclasses.dataclass(frozen=True)
class Report:
    """Counts of combinations.

    Attributes:
        legal: How many are defined.
        refused: How many each rule refuses, by its name.
    """

    legal: int
    refused: Counter[str]

    @classmethod
    def of(cls, refusals: Mapping[Combination, Refusal | None]) -> Report:
        """Count combinations; one that breaks several rules counts for the first."""
        found = list(refusals.values())
        return cls(found.count(None), Counter(one.rule for one in found if one is not None))

    def __str__(self) -> str:
        statements = {rule.name: rule.statement for rule in RULES}
        lines = [f"{count:6} {rule}: {statements[rule]}" for rule, count in self.refused.most_common()]
        return "\n".join([f"{self.legal:6} legal", f"{self.refused.total():6} refused, of which", *lines])
