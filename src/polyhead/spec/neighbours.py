"""Lists of keys, one for each query: arrays ``[queries, keys]`` of key positions, -1 where a row has no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def between(low: NDArray[np.int64], high: NDArray[np.int64], kv_len: int) -> NDArray[np.int64]:
    """Return the keys from ``low`` to ``high``, both ``[queries]`` and inclusive, as far as they exist."""
    import numpy as np

    low, high = np.maximum(low, 0)[:, None], np.minimum(high, kv_len - 1)[:, None]
    keys = low + np.arange(max(0, (high - low).max() + 1))
    return np.where(keys <= high, keys, -1)


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
