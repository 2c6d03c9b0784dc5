"""Which combinations of the four choices are defined.

Everything is legal unless it is undefined. Each rule below is one refusal: the reason, and the nearest spec that
is legal. What is well defined but slow, or known only to some kernels, is no refusal: see `polyhead.explain`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from polyhead.spec.choice import divisors
from polyhead.spec.pattern import Causal, Full, Pattern
from polyhead.spec.position import Alibi, NoPosition, Position, RelativeBias, Rotary
from polyhead.spec.storage import Grouped, Latent, Storage
from polyhead.spec.weighting import Linear, Weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """Four choices that have not been checked against each other yet."""

    storage: Storage
    position: Position
    pattern: Pattern
    weighting: Weighting

    @property
    def rotary_width(self) -> int:
        """The width that RoPE can turn: the whole query's, or the RoPE key's."""
        return self.storage.qk_rope_head_dim if isinstance(self.storage, Latent) else self.storage.head_dim

    @property
    def rotary_dim(self) -> int:
        """The width that RoPE turns, or 0."""
        if not isinstance(self.position, Rotary):
            return 0
        return self.rotary_width if self.position.rotary_dim is None else self.position.rotary_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One way in which four choices can fail to be defined.

    Attributes:
        name: A short name.
        statement: What is refused and why, without numbers, for the printed list.
        problem: Returns the reason with its numbers, or None where the rule is kept.
        mend: Returns the nearest choices that keep the rule.
    """

    name: str
    statement: str
    problem: Callable[[Choices], str | None]
    mend: Callable[[Choices], Choices]


def _linear_bias(c: Choices) -> str | None:
    if isinstance(c.weighting, Linear) and isinstance(c.position, RelativeBias | Alibi):
        return f"Linear has no score that {c.position!r} could be added to: φ(q)·φ(k) is never formed for a pair"
    return None


def _linear_pattern(c: Choices) -> str | None:
    if isinstance(c.weighting, Linear) and c.pattern not in (Full(), Causal()):
        return f"Linear keeps one running sum over keys, from which {c.pattern!r} cannot leave any out"
    return None


def _linear_pattern_mend(c: Choices) -> Choices:
    return dataclasses.replace(c, pattern=Causal() if c.pattern.is_causal else Full())


def _latent_rotary(c: Choices) -> str | None:
    if isinstance(c.storage, Latent) and isinstance(c.position, Rotary):
        if c.storage.qk_rope_head_dim == 0:
            return "Latent(qk_rope_head_dim=0) has no RoPE key, so Rotary has nothing to turn"
        if c.rotary_dim != c.storage.qk_rope_head_dim:
            return f"Rotary turns {c.rotary_dim} widths and the RoPE key has {c.storage.qk_rope_head_dim}"
    return None


def _latent_rotary_mend(c: Choices) -> Choices:
    if c.rotary_width == 0 or not isinstance(c.position, Rotary):
        return dataclasses.replace(c, position=NoPosition())
    return dataclasses.replace(c, position=dataclasses.replace(c.position, rotary_dim=None))


def _rotary_width(c: Choices) -> str | None:
    if not isinstance(c.position, Rotary) or (isinstance(c.storage, Latent) and c.rotary_width == 0):
        return None
    if c.rotary_dim > c.rotary_width:
        return f"rotary_dim={c.rotary_dim} is more than the head's {c.rotary_width} widths"
    if c.rotary_dim % 2:
        return f"Rotary turns pairs of widths, and there are {c.rotary_dim}"
    return None


def _rotary_width_mend(c: Choices) -> Choices:
    even = c.rotary_width - c.rotary_width % 2
    if not even or not isinstance(c.position, Rotary):
        return dataclasses.replace(c, position=NoPosition())
    if isinstance(c.storage, Latent):  # all of the RoPE key must turn, so it is the key that becomes even
        return dataclasses.replace(c, storage=dataclasses.replace(c.storage, qk_rope_head_dim=even))
    return dataclasses.replace(c, position=dataclasses.replace(c.position, rotary_dim=even))


def _scaling_width(c: Choices) -> str | None:
    if isinstance(c.position, Rotary) and c.position.scaling is not None:
        return c.position.scaling.problem(c.rotary_dim)
    return None


def _scaling_width_mend(c: Choices) -> Choices:
    assert isinstance(c.position, Rotary)
    return dataclasses.replace(c, position=dataclasses.replace(c.position, scaling=None))


def _alibi_slopes(c: Choices) -> str | None:
    if isinstance(c.position, Alibi):
        given = len(c.position.head_slopes(c.storage.num_heads))
        if given != c.storage.num_heads:
            return f"Alibi has {given} slopes for these heads and the spec num_heads={c.storage.num_heads}"
    return None


def _link_tables(c: Choices) -> str | None:
    for count in c.pattern.table_heads:
        if count != c.storage.num_heads:
            return f"Links has {count} tables and the spec num_heads={c.storage.num_heads}; give one, or one per head"
    return None


def _link_tables_mend(c: Choices) -> Choices:
    count = next(n for n in c.pattern.table_heads if n != c.storage.num_heads)
    storage = c.storage
    if isinstance(storage, Grouped):
        shared = max(d for d in divisors(count) if d <= storage.kv_heads)
        return dataclasses.replace(c, storage=dataclasses.replace(storage, num_heads=count, num_kv_heads=shared))
    return dataclasses.replace(c, storage=dataclasses.replace(storage, num_heads=count))


RULES: tuple[Rule, ...] = (
    Rule(
        name="linear-bias",
        statement="linear weighting with an additive bias (T5, clipped, Shaw or ALiBi): it never forms a pair's score",
        problem=_linear_bias,
        mend=lambda c: dataclasses.replace(c, position=NoPosition()),
    ),
    Rule(
        name="linear-pattern",
        statement="linear weighting with a pattern other than full or causal: a running sum leaves no key out",
        problem=_linear_pattern,
        mend=_linear_pattern_mend,
    ),
    Rule(
        name="latent-rotary",
        statement="a latent whose RoPE key is not exactly as wide as what Rotary turns",
        problem=_latent_rotary,
        mend=_latent_rotary_mend,
    ),
    Rule(
        name="rotary-width",
        statement="a rotation over an odd number of widths, or over more than the head has",
        problem=_rotary_width,
        mend=_rotary_width_mend,
    ),
    Rule(
        name="scaling-width",
        statement="a RoPE scaling at a width where its formula has no value (NTK at 2, LongRoPE's factors miscounted)",
        problem=_scaling_width,
        mend=_scaling_width_mend,
    ),
    Rule(
        name="alibi-slopes",
        statement="ALiBi with another number of slopes than heads",
        problem=_alibi_slopes,
        mend=lambda c: dataclasses.replace(c, position=Alibi()),
    ),
    Rule(
        name="link-tables",
        statement="link tables for another number of heads than there are",
        problem=_link_tables,
        mend=_link_tables_mend,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why four choices are not defined together, and the nearest ones that are.

    Attributes:
        rule: The name of the rule that they break.
        reason: The reason, with the numbers that came.
        nearest: Choices that break no rule.
    """

    rule: str
    reason: str
    nearest: Choices


def refusal(choices: Choices) -> Refusal | None:
    """Return the first rule that choices break, or None if they are legal."""
    broken = _first_broken(choices)
    if broken is None:
        return None
    rule, reason = broken
    nearest, next_broken = choices, broken
    for _ in RULES:  # each mend keeps one rule more, so this many rounds suffice
        nearest = next_broken[0].mend(nearest)
        again = _first_broken(nearest)
        if again is None:
            break
        next_broken = again
    return Refusal(rule=rule.name, reason=reason, nearest=nearest)


def _first_broken(choices: Choices) -> tuple[Rule, str] | None:
    return next(((rule, why) for rule in RULES if (why := rule.problem(choices)) is not None), None)
