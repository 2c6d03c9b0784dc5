"""Running a fitted spec, in NumPy by the oracle or in torch by the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyhead.compare.inputs import Array, Fitted
from polyhead.errors import require_extra, unknown_name
from polyhead.oracle import attend as oracle_attend
from polyhead.oracle import attend_tiled

ENGINES = ("numpy", "torch")


def run(fitted: Fitted, engine: str, tile: int | None) -> tuple[Array, Array]:
    """Run a fitted spec in float64.

    Args:
        fitted: The spec with its inputs.
        engine: ``"numpy"`` or ``"torch"``.
        tile: Keys in a tile, for flash attention; None for the whole score matrix. Flash stores no weights, so
            those returned are the whole matrix's.

    Returns:
        Output ``[heads, q_len, v_width]`` and weights ``[heads, q_len, kv_len]``.
    """
    query, key, value = (None if x is None else x[None] for x in (fitted.query, fitted.key, fitted.value))
    positions = {}
    if fitted.is_cross:
        positions = {"query_positions": np.arange(fitted.query.shape[1]), "key_positions": np.arange(fitted.key.shape[1])}
    if engine == "torch":
        return _run_torch(query, key, value, fitted, positions, tiled=tile is not None)
    output, weights = oracle_attend(
        query, key, value, fitted.spec, params=fitted.params, return_weights=True, **positions
    )
    if tile is not None:
        output = attend_tiled(query, key, value, fitted.spec, tile=tile, params=fitted.params)
    return output[0], weights[0]


def check_engine(engine: str) -> None:
    """Raise UnknownNameError for an engine that does not exist, MissingExtraError for one not installed."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "torch":
        require_extra("torch", "torch", "engine='torch'")


def _run_torch(query: Any, key: Any, value: Any, fitted: Fitted, positions: dict[str, Array], *, tiled: bool) -> tuple[Array, Array]:
    import torch

    from polyhead.attention import attend

    def tensor(array: Array | None) -> Any:
        return None if array is None else torch.tensor(array, dtype=torch.float64)

    inputs = tensor(query), tensor(key), tensor(value)
    params = {name: tensor(array) for name, array in fitted.params.items()}
    where = {name: torch.from_numpy(array) for name, array in positions.items()}
    output, weights = attend(*inputs, fitted.spec, params=params, return_weights=True, **where)
    if tiled:
        output = attend(*inputs, fitted.spec, params=params, kernel="dense", **where)
    return output[0].numpy(), weights[0].numpy()
