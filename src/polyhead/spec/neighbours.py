"""Lists of keys, one for each query."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Neighbours(NamedTuple):
    """The keys that each of some queries sees.

    Attributes:
        keys: ``[queries, keys]``, each query's keys, none twice; -1 where it has no more.
        every: ``[queries]``, True for a query that may see any number of keys; its row of ``keys`` means nothing.
    """

    keys: NDArray[np.int64]
    every: NDArray[np.bool_]


def unlisted(queries: int) -> Neighbours:
    """Return the neighbours of queries that may all see any number of keys."""
    import numpy as np

    return Neighbours(np.empty((queries, 0), dtype=np.int64), np.ones(queries, dtype=np.bool_))


def listed(keys: NDArray[np.int64]) -> Neighbours:
    """Return the neighbours of queries that all have a list."""
    import numpy as np

    return Neighbours(keys, np.zeros(len(keys), dtype=np.bool_))


def between(low: NDArray[np.int64], high: NDArray[np.int64], kv_len: int) -> Neighbours:
    """Return the keys from ``low`` to ``high``, both ``[queries]`` and inclusive, as far as they exist."""
    import numpy as np

    low, high = np.maximum(low, 0)[:, None], np.minimum(high, kv_len - 1)[:, None]
    keys = low + np.arange(max(0, (high - low).max() + 1))
    return listed(np.where(keys <= high, keys, -1))


def distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row's keys in order, each once, and no wider than the longest row needs."""
    import numpy as np

    absent = np.iinfo(keys.dtype).max
    keys = np.sort(np.where(keys < 0, absent, keys), axis=-1)
    again = keys[:, 1:] == keys[:, :-1]
    keys[:, 1:][again] = absent
    if again.any():
        keys.sort(axis=-1)
    there = keys < absent
    return np.where(there, keys, -1)[:, : there.sum(axis=-1).max()]
