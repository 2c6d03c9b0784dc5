"""What an entry of the encyclopaedia says about a mechanism."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from polyhead.catalog.example import EXAMPLE
from polyhead.catalog.settings import TEXTBOOK, Settings
from polyhead.spec import AttentionSpec

Changes = Literal["nothing", "storage", "source", "position", "pattern", "weighting", "computation"]
"""What a mechanism changes: one of the four choices; where keys and values come from; the computation; nothing."""

Inputs = Literal["as they are", "heads", "second sequence", "halves", "latent"]
"""How a mechanism takes a base's queries, keys and values: as they are; its heads split, repeated or averaged; from
a second sequence; each head halved into two maps; keys and values compressed into a latent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forces:
    """How a mechanism pulls on the four forces: −1 against, 0 neutral, +1 for, against the baseline.

    Attributes:
        quality: Whether every pair that matters is weighed as it should be.
        speed: Time of a long sequence.
        memory: Size of the cache.
        position: Knowing where tokens are.
    """

    quality: int
    speed: int
    memory: int
    position: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One of the fifteen.

    Attributes:
        number: Its number in the textbook, 1 to 15.
        name: The name to type, lower case with hyphens.
        title: The name to read.
        aliases: Other names it goes by.
        year: Year of publication.
        paper: Authors, venue or arXiv number.
        formula: The formula in plain text.
        latex: The same in LaTeX.
        changes: What it changes.
        time: Time for N tokens of width d.
        cache: What the cache holds for each token and layer, in numbers.
        what: What it does, in a sentence.
        gains: What it gains, in a sentence.
        loses: What it loses, in a sentence.
        when: When to use it, in a sentence.
        forces: How it pulls on the four forces.
        inputs: How it takes a base's queries, keys and values.
        substitute: Puts it into a base spec: ``substitute(base, settings) -> spec``.
    """

    number: int
    name: str
    title: str
    aliases: tuple[str, ...]
    year: int
    paper: str
    formula: str
    latex: str
    changes: Changes
    time: str
    cache: str
    what: str
    gains: str
    loses: str
    when: str
    forces: Forces
    inputs: Inputs
    substitute: Callable[[AttentionSpec, Settings], AttentionSpec]

    @property
    def spec(self) -> AttentionSpec:
        """The mechanism on the textbook's shared example."""
        return self.substitute(EXAMPLE.base, TEXTBOOK)

    @property
    def is_cross(self) -> bool:
        """Whether keys and values come from another sequence."""
        return self.inputs == "second sequence"

    @property
    def is_tiled(self) -> bool:
        """Whether it is a way to compute (tiles and an online softmax) rather than a choice."""
        return self.changes == "computation"
