"""The fifteen mechanisms, a file for each thing that they change."""

from __future__ import annotations

from polyhead.catalog.mechanism import Mechanism
from polyhead.catalog.mechanisms.baseline import FLASH, SCALED_DOT_PRODUCT
from polyhead.catalog.mechanisms.pattern import BIGBIRD, CAUSAL, SLIDING_WINDOW
from polyhead.catalog.mechanisms.position import ALIBI, RELATIVE_BIAS, ROPE
from polyhead.catalog.mechanisms.source import CROSS
from polyhead.catalog.mechanisms.storage import GQA, MHA, MLA, MQA
from polyhead.catalog.mechanisms.weighting import DIFFERENTIAL, LINEAR
from polyhead.errors import unknown_name


def mechanisms() -> tuple[Mechanism, ...]:
    """Return the fifteen, in the textbook's order."""
    return (
        SCALED_DOT_PRODUCT,
        MHA,
        CAUSAL,
        CROSS,
        MQA,
        GQA,
        RELATIVE_BIAS,
        ROPE,
        ALIBI,
        LINEAR,
        SLIDING_WINDOW,
        BIGBIRD,
        FLASH,
        DIFFERENTIAL,
        MLA,
    )


def mechanism(name: str | int) -> Mechanism:
    """Look a mechanism up.

    Args:
        name: Its name, an alias, or its number, in any case: ``"gqa"``, ``"Grouped-query attention"``, ``6``.

    Returns:
        The entry.

    Raises:
        UnknownNameError: If none goes by that name; the message names the nearest.
    """
    wanted = str(name).strip().lower().removeprefix("#")
    for entry in mechanisms():
        if wanted in {str(entry.number), entry.name, entry.title.lower(), *map(str.lower, entry.aliases)}:
            return entry
    raise unknown_name("mechanism", name, [entry.name for entry in mechanisms()])
