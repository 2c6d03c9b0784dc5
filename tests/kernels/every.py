"""Every kernel beside the specs that it takes, for the laws that all of them obey; and what a kernel gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels.common import Case
from polyhead.kernels.select import KERNELS
from tests.inputs import Array, Inputs, spec
from tests.tolerances import as_array, assert_close

Results = dict[str, torch.Tensor]
"""The output, and the gradient of every tensor by its name."""


def specs(unit: int) -> dict[str, ph.AttentionSpec]:
    """Return specs that between them go every way through every kernel, their windows and blocks about ``unit``."""
    window = ph.SlidingWindow.causal(unit)
    paper = ph.Differential()
    trained = ph.DynamicNTKScaling(factor=3.0, original_max_seq_len=unit)
    t5 = ph.RelativeBias.t5(num_buckets=8, max_distance=unit)
    scattered = ph.RandomLinks(per_query=3, seed=1) | ph.Band(left=1, right=0)
    return {
        "full": spec("mha", position=ph.Rotary(pairs="interleaved")),
        "causal": spec("gqa", pattern=ph.Causal(), position=ph.Rotary()),
        "window": spec("gqa", pattern=window, position=ph.Rotary()),
        "T5 in a two-sided window, sink": spec(
            "gqa", pattern=ph.SlidingWindow(left=unit, right=3), position=t5, weighting=ph.Softmax(sink=True)
        ),
        "ALiBi, first tokens kept": spec(
            "gqa", pattern=(window | ph.Global(first=2)) & ph.Causal(), position=ph.Alibi()
        ),
        "chunks": spec("mqa", pattern=ph.Chunked(size=unit) & ph.Causal()),
        "BigBird": spec("gqa", pattern=ph.BigBird(block=unit // 2) & ph.Causal()),
        "links": spec("mha", pattern=scattered, position=ph.Rotary()),
        "softcap, ALiBi": spec("gqa", pattern=ph.Causal(), position=ph.Alibi(), weighting=ph.Softmax(softcap=5.0)),
        "Shaw": spec("gqa", position=ph.RelativeBias.shaw(max_distance=unit // 2)),
        "dynamic NTK": spec("gqa", pattern=window, position=ph.Rotary(scaling=trained)),
        "paper": spec("gqa", pattern=ph.Causal(), weighting=paper),
        "clipped": spec("gqa", pattern=window, weighting=ph.Differential(form="clipped")),
        "latent": spec("mla", pattern=ph.Causal(), position=ph.Rotary()),
        "latent, paper in a window": spec("mla", pattern=window, weighting=paper),
        "linear": spec("gqa", pattern=ph.Causal(), position=ph.Rotary(), weighting=ph.Linear()),
        "linear over a latent": spec("mla", weighting=ph.Linear(feature_map="softplus")),
    }


SPECS = specs(48)
SMALL = specs(4)
"""The same mechanisms for a dozen tokens; see `make_pieces_small`."""


def takers(case: Case) -> list[str]:
    """Return the names of the kernels that take a case."""
    return [kernel.name for kernel in KERNELS if kernel.refuse(case) is None]


def case_of(inputs: Inputs, **changes: Any) -> Case:
    """Return what is asked where inputs are attended to, with gradients."""
    q_len, kv_len = lengths(inputs)
    given = {"key_mask": "key_mask" in inputs.given, "segments": "segments" in inputs.given}
    aligned = not {"query_positions", "key_positions"} & set(inputs.given)
    asked = Case(spec=inputs.spec, q_len=q_len, kv_len=kv_len, aligned=aligned, needs_grad=True, **given)
    return asked._replace(**changes)


def lengths(inputs: Inputs) -> tuple[int, int]:
    """Return the numbers of queries and keys."""
    return inputs.learned["query"].shape[2], inputs.learned["key"].shape[2]


def by_kernel(names: Iterable[str] = SPECS, *, one_in: int = 1, **asked: Any) -> Any:
    """Parametrise a test over every kernel and the specs that it takes, in cases that ask for no less than this.

    Args:
        names: The specs.
        one_in: Of how many specs of a kernel one is tested in every run; the others are slow.
        **asked: See `polyhead.kernels.common.Case`.

    Returns:
        The decorator, whose test takes ``kernel`` and ``name``.
    """
    sizes = {"q_len": 300, "kv_len": 300, "needs_grad": True, **asked}
    pairs = []
    for number, kernel in enumerate(KERNELS):
        taken = [name for name in names if kernel.refuse(Case(spec=SPECS[name], **sizes)) is None]
        for index, name in enumerate(taken):
            quick = (index - number) % min(one_in, len(taken)) == 0
            marks = () if quick else pytest.mark.slow
            pairs.append(pytest.param(kernel.name, name, id=f"{kernel.name}-{name}", marks=marks))
    return pytest.mark.parametrize(("kernel", "name"), pairs)


def results(
    inputs: Inputs,
    kernel: str,
    dtype: torch.dtype = torch.float64,
    *,
    lay: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, x: x,
    wanted: Iterable[str] | None = None,
    cotangent: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Results:
    """Run a kernel forward and backward.

    Args:
        inputs: What it is given.
        kernel: Its name.
        dtype: Dtype of query, key and value, and if it is wide of what is learned.
        lay: Lays a tensor out in memory, by its name.
        wanted: The tensors that require a gradient. None: all.
        cotangent: Makes the output's gradient from the output. None: numbers that differ everywhere.

    Returns:
        The output and the gradients of what is wanted.
    """
    leaves, tensors = {}, {}
    for name, array in inputs.learned.items():
        own = dtype if name in ("query", "key", "value") else torch.promote_types(dtype, torch.float32)
        leaf = torch.tensor(array, dtype=own)
        leaves[name] = leaf.requires_grad_(wanted is None or name in wanted)
        tensors[name] = lay(name, leaf)
    output = inputs.attend(tensors, kernel=kernel)
    asked = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    grad = (cotangent or waves)(output.detach())
    grads = torch.autograd.grad(output, list(asked.values()), grad, allow_unused=True, materialize_grads=True)
    return {"output": output.detach(), **dict(zip(asked, grads, strict=True))}


def waves(like: torch.Tensor) -> torch.Tensor:
    """Return numbers from −1 to 1 that differ everywhere."""
    return torch.sin(torch.arange(like.numel(), dtype=torch.float64)).view(like.shape).to(like.dtype)


def assert_results(ours: Mapping[str, Any], theirs: Mapping[str, Any], dtype: torch.dtype, *, what: str = "") -> None:
    """Assert that outputs agree, and gradients as parts of the largest: it says how large the terms are in a sum."""
    assert ours.keys() == theirs.keys()
    assert_close(ours["output"], theirs["output"], dtype, what=f"{what} output")
    grads = {name: as_array(grad) for name, grad in theirs.items() if name != "output"}
    size = max(1.0, *(np.abs(grad).max(initial=0.0) for grad in grads.values()))
    for name, grad in grads.items():
        assert_close(as_array(ours[name]) / size, grad / size, dtype, what=f"{what} gradient of {name}")


def assert_same_bits(ours: Results, theirs: Results) -> None:
    """Assert that two runs do not differ at all."""
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def may_see(inputs: Inputs) -> Array:
    """Return which pairs may meet as the pattern has it, ``[num_heads, q_len, kv_len]``."""
    (q_len, kv_len), whole = lengths(inputs), inputs.spec
    keys = np.arange(kv_len)
    queries = keys[-1] + 1 - q_len + np.arange(q_len)
    heads = range(whole.num_heads)
    return np.stack([np.asarray(whole.pattern.allowed(queries, keys, kv_len=kv_len, head=head)) for head in heads])


def make_pieces_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dozen tokens make several tiles, blocks, chunks and parts of a gradient."""
    for name, value in {
        "tiles.BAND_ROWS": 4,
        "tiles.WIDE_ROWS": 8,
        "formed.MASK_ELEMENTS": 2**8,
        "flash.KEYS_AT_ONCE": 5,
        "tiled.COPIED_BYTES": 2**10,
        "table_gradient.ROWS": 4,
        "table_gradient.MOST_ELEMENTS": 2**7,
        "blockwise.BLOCK_ELEMENTS": 200,
        "blockwise.BLOCK_COST": 0,
        "linear.CHUNK": 4,
        "linear.FEATURES_AT_ONCE": 2**8,
        "stages.PER_QUERY_ELEMENTS": 50,
    }.items():
        monkeypatch.setattr(f"polyhead.kernels.{name}", value)
