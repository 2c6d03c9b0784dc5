"""`torch.compile(fullgraph=True)` of `attend`: one graph, the same numbers, gradients too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests.inputs import VARIED, Inputs, spec
from tests.tolerances import assert_close

# Random links are hashed in NumPy's uint64, which torch's compiler does not trace: they need a graph break.
CHOICES = {"full": {}, "causal": {"pattern": ph.Causal()}, **VARIED}


@pytest.fixture(autouse=True)
def no_compiled_code_is_left() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(choices: dict[str, Any], storage: str, backend: str) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 0, q_len=6, kv_len=6)
    compiled = torch.compile(inputs.attend, fullgraph=True, backend=backend)
    results = []
    for run in (inputs.attend, compiled):
        leaves = inputs.tensors(torch.float32, requires_grad=True)
        output = run(leaves)
        output.square().sum().backward()
        results.append({"output": output, **{name: leaf.grad for name, leaf in leaves.items()}})
    for name, expected in results[0].items():
        assert_close(results[1][name], expected, torch.float32, what=name)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_attend_is_one_graph(choices: dict[str, Any]) -> None:
    check_compiled(choices, "gqa", "aot_eager")


def test_a_latent_is_one_graph() -> None:
    check_compiled({"position": ph.Rotary(), "pattern": ph.Causal()}, "mla", "aot_eager")


@pytest.mark.parametrize("kernel", ["dense", "plain"])
def test_nothing_of_a_masked_key_reaches_a_row_of_compiled_code(kernel: str) -> None:
    """Compiled code cannot look whether a result is finite, so what is masked must be blanked before."""
    mask = np.array([[True, False, True, True, True]] * 2)
    inputs = Inputs.draw(spec("gqa"), 1).giving(key_mask=mask)
    tensors = inputs.tensors(torch.float64)
    for name in ("key", "value"):
        tensors[name][:, :, 1] = torch.nan

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(tensors: dict[str, torch.Tensor], key_mask: torch.Tensor) -> torch.Tensor:
        return ph.attend(**tensors, spec=inputs.spec, key_mask=key_mask, kernel=kernel)

    assert_close(run(tensors, torch.tensor(mask)), inputs.oracle(), torch.float64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_attend_compiles_to_machine_code(choices: dict[str, Any]) -> None:
    check_compiled(choices, "gqa", "inductor")
