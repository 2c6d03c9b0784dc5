"""The textbook's shared example: five tokens of width 4, on which all fifteen mechanisms are compared."""

from __future__ import annotations

import dataclasses

from polyhead.spec import AttentionSpec, Grouped

Rows = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """The example's inputs.

    Attributes:
        tokens: The words, at positions 0 to 4.
        token: The word whose row the textbook prints.
        query: A query per token.
        key: A key per token.
        value: A value per token.
        cross_query: A decoder's query per token, for cross-attention.
        latent_down: W_down of #15: ``c = key · latent_down``.
        latent_up: W_up of #15, shared by keys and values: ``c · latent_up``.
    """

    tokens: tuple[str, ...]
    token: str
    query: Rows
    key: Rows
    value: Rows
    cross_query: Rows
    latent_down: Rows
    latent_up: Rows

    @property
    def base(self) -> AttentionSpec:
        """The spec that every mechanism is put into: one head, no position, full, softmax."""
        return AttentionSpec(storage=Grouped(num_heads=1, head_dim=len(self.query[0])))


EXAMPLE = Example(
    tokens=("The", "cat", "sat", "on", "mat"),
    token="cat",
    query=((1, 0, 0, 1), (2, 0, 1, 0), (0, 1, 2, 0), (0, 2, 0, 1), (1, 0, 1, 1)),
    key=((1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1), (0, 1, 0.5, 0.5)),
    value=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 1, 0)),
    cross_query=((0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1)),
    latent_down=((0.4, 0.75), (0.2, 0.1), (0, 0), (0.1, 0.4)),
    latent_up=((1, 0, 1, 0), (0, 1, 0, 1)),
)
"""The textbook prints only results for "cat". The keys, the values and cat's two queries follow from them, but for
how cat's own key is shared between its dims 1 and 3, and W_down, of which many would do; the other queries are
free choices. No printed row depends on a choice."""
