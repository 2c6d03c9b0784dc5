"""`torch.compile(fullgraph=True)` of `attend`: one graph, the same numbers, gradients too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_attend_compiles_to_machine_code(choices: dict[str, Any]) -> None:
    check_compiled(choices, "gqa", "inductor")
