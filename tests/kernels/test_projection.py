"""A single token's projections: the same numbers as the module's, which is called itself where it is no plain one."""

import pytest
import torch
from torch import nn

from polyhead.kernels import projection
from tests.tolerances import assert_close


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [256, 386, 387])
@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_as_the_module(tokens, outputs, bias):
    linear, x = nn.Linear(256, outputs, bias=bias), torch.randn(1, tokens, 256)
    with torch.no_grad():
        expected = (x.double() @ linear.weight.double().mT) + (linear.bias.double() if bias else 0.0)
        projected = projection.project(linear, x)
    assert projected.dtype == torch.float32
    assert_close(projected, expected, torch.float32)


@pytest.mark.usefixtures("two_threads")
def test_parts_of_a_slice(monkeypatch):
    """Adopted weights may be a part of a fused matrix, and inputs need not be contiguous."""
    called = []
    monkeypatch.setattr(torch, "bmm", lambda *given, bmm=torch.bmm: called.append(given) or bmm(*given))
    linear, x = nn.Linear(256, 300, bias=False), torch.randn(1, 256, 3).mT[:, 1:2]
    linear.weight = nn.Parameter(torch.randn(600, 300)[1::2, 44:])
    with torch.no_grad():
        assert_close(projection.project(linear, x), x.double() @ linear.weight.double().mT, torch.float32)
    assert bool(called) == torch.backends.mkl.is_available()


class Doubling(nn.Linear):
    """What an adapter does to a projection."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.usefixtures("two_threads")
def test_what_a_module_does_besides_is_done():
    x, adapted, hooked = torch.randn(1, 1, 256), Doubling(256, 256), nn.Linear(256, 256)
    hooked.register_forward_hook(lambda module, given, output: output + 1)
    with torch.no_grad():
        for module in (adapted, hooked):
            assert torch.equal(projection.project(module, x), module(x))


@pytest.mark.usefixtures("two_threads")
def test_a_gradient_and_autocast_go_through_the_module():
    linear, x = nn.Linear(256, 256), torch.randn(1, 1, 256)
    projection.project(linear, x).sum().backward()
    assert torch.equal(linear.weight.grad, x[0].expand(256, 256))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert projection.project(linear, x).dtype == torch.bfloat16
