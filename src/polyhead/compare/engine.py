"""Running a fitted spec, in NumPy by the oracle or in torch by the kernels."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from polyhead.compare.inputs import Array, Fitted
from polyhead.errors import require_extra, unknown_name
from polyhead.oracle import attend as oracle_attend, attend_tiled, trace as oracle_trace
from polyhead.oracle.trace import Trace

ENGINES = ("numpy", "torch")


class Result(NamedTuple):
    """One mechanism's whole result.

    Attributes:
        fitted: The spec and inputs that ran.
        output: ``[heads, q_len, v_width]``.
        weights: ``[heads, q_len, kv_len]``.
    """

    fitted: Fitted
    output: Array
    weights: Array


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
    if engine == "torch":
        return _run_torch(fitted, tiled=tile is not None)
    value = None if fitted.value is None else fitted.value[None]
    arrays = fitted.query[None], fitted.key[None], value, fitted.spec
    query_positions, key_positions = _positions(fitted)
    output, weights = oracle_attend(
        *arrays,
        params=fitted.params,
        query_positions=query_positions,
        key_positions=key_positions,
        return_weights=True,
    )
    if tile is not None:
        output = attend_tiled(*arrays, tile=tile, params=fitted.params)
    return output[0], weights[0]


def trace(fitted: Fitted, head: int, index: int, tile: int | None) -> Trace:
    """Return what one query goes through in one head, in NumPy whatever the engine, since stages are the oracle's.

    Args:
        fitted: The spec with its inputs.
        head: The head.
        index: Which query.
        tile: Keys in a tile, for flash attention; None for no tiles.

    Returns:
        The stages.
    """
    value = None if fitted.value is None else fitted.value[None]
    query_positions, key_positions = _positions(fitted)
    positions = None if query_positions is None or key_positions is None else (query_positions, key_positions)
    return oracle_trace(
        fitted.query[None],
        fitted.key[None],
        value,
        fitted.spec,
        head=head,
        index=index,
        positions=positions,
        params=fitted.params,
        tile=tile,
    )


def check_engine(engine: str) -> None:
    """Raise UnknownNameError for an engine that does not exist, MissingExtraError for one not installed."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "torch":
        require_extra("torch", "torch", "engine='torch'")


def _positions(fitted: Fitted) -> tuple[Array | None, Array | None]:
    """Return positions where each sequence counts from 0, or none where they are implied."""
    if not fitted.is_cross:
        return None, None
    return np.arange(fitted.query.shape[1]), np.arange(fitted.key.shape[1])


def _run_torch(fitted: Fitted, *, tiled: bool) -> tuple[Array, Array]:
    import torch

    from polyhead.attention import attend as attend_in_torch

    def batch_of_one(array: Array) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.float64)[None]

    value = None if fitted.value is None else batch_of_one(fitted.value)
    params = {name: torch.tensor(array, dtype=torch.float64) for name, array in fitted.params.items()}
    query_positions, key_positions = (None if p is None else torch.from_numpy(p) for p in _positions(fitted))
    call = functools.partial(
        attend_in_torch,
        batch_of_one(fitted.query),
        batch_of_one(fitted.key),
        value,
        fitted.spec,
        params=params,
        query_positions=query_positions,
        key_positions=key_positions,
    )
    output, weights = call(return_weights=True)
    if tiled:
        output = call(kernel="dense")
    return output[0].numpy(), weights[0].numpy()
