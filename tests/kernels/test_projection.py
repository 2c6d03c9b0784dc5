"""A single token's projections: the same numbers as the modules', which are called themselves where they are no plain
ones.
"""

import concurrent.futures
import importlib.util

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from polyhead.kernels import compiled, projection
from tests.tolerances import assert_close

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


@pytest.fixture(params=["pytorch", pytest.param("numba", marks=needs_numba)])
def way(request, monkeypatch):
    """What computes, on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(compiled, "unavailable", lambda: None if request.param == "numba" else "not installed")
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def called(way, monkeypatch):
    """Whether that computed, by a call each time."""
    calls = []

    def count(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: calls.append(name) or function(*given))

    count(*((projection.team, "run") if way == "numba" else (torch, "bmm")))
    return calls


def expected(linear, x):
    product = x.double() @ linear.weight.double().mT
    return product if linear.bias is None else product + linear.bias.double()


def check(linears, x):
    with torch.no_grad():
        projected = projection.project(linears, x)
        for ours, linear in zip(projected, linears, strict=True):
            assert ours.dtype == torch.float32
            assert_close(ours, expected(linear, x), torch.float32)
    return projected


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [256, 386, 387])
@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_as_the_module(tokens, outputs, bias):
    check([nn.Linear(256, outputs, bias=bias)], torch.randn(1, tokens, 256))


@pytest.mark.parametrize("outputs", [(300, 64, 64), (1, 2, 3, 511), (31, 32, 33, 224)])
def test_several_matrices_meet_a_row_together(called, way, outputs):
    linears = [nn.Linear(256, count, bias=count % 2 == 0) for count in outputs]
    check(linears, torch.randn(1, 1, 256))
    assert way == "pytorch" or called == ["run"]


def test_parts_of_a_slice(called):
    """Adopted weights may be a part of a fused matrix, and inputs need not be contiguous."""
    linear, x = nn.Linear(256, 300, bias=False), torch.randn(1, 256, 3).mT[:, 1:2]
    linear.weight = nn.Parameter(torch.randn(600, 300)[1::2, 44:])
    check([linear], x)
    assert called or not torch.backends.mkl.is_available()


@pytest.mark.parametrize(("width", "transposed"), [(250, False), (256, True)])
def test_what_the_loops_do_not_take(width, transposed, way, called):
    linear = nn.Linear(width, 300)
    if transposed:
        linear.weight = nn.Parameter(linear.weight.detach().mT.contiguous().mT)
    check([linear], torch.randn(1, 1, width))
    assert way == "pytorch" or not called


@pytest.mark.usefixtures("way")
def test_a_row_of_another_width_is_refused_and_nothing_read_past_its_end():
    with torch.no_grad(), pytest.raises(RuntimeError, match="256"):
        projection.project([nn.Linear(256, 300)], torch.randn(1, 1, 248))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_comes_out_where_the_module_has_it(bad):
    linear, x = nn.Linear(256, 300), torch.randn(1, 1, 256)
    with torch.no_grad():
        linear.weight[7, 5], linear.weight[299, 255] = bad, -bad
        assert torch.equal(projection.project([linear], x)[0].isnan(), linear(x).isnan())
        assert torch.equal(projection.project([linear], x)[0].isinf(), linear(x).isinf())
        x[0, 0, 3] = bad
        assert torch.equal(projection.project([linear], x)[0].isnan(), linear(x).isnan())


@needs_numba
def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(projection, "FEWEST_WEIGHTS", 2**10)
    linears, x, before = [nn.Linear(256, 300), nn.Linear(256, 77)], torch.randn(1, 1, 256), torch.get_num_threads()
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        results.append(torch.cat(check(linears, x), dim=-1))
    torch.set_num_threads(before)
    assert all(torch.equal(one, results[0]) for one in results)


@pytest.mark.usefixtures("way")
def test_calls_at_the_same_time():
    linear = nn.Linear(256, 300)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: check([linear], torch.randn(1, 1, 256)), range(50)))


class Doubling(nn.Linear):
    """What an adapter does to a projection."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.usefixtures("way")
def test_what_a_module_does_besides_is_done():
    x, plain, adapted, hooked = torch.randn(1, 1, 256), *(kind(256, 256) for kind in (nn.Linear, Doubling, nn.Linear))
    hooked.register_forward_hook(lambda module, given, output: output + 1)
    with torch.no_grad():
        for module in (adapted, hooked):
            first, second = projection.project([plain, module], x)
            assert torch.equal(first, plain(x))
            assert torch.equal(second, module(x))


@pytest.mark.usefixtures("way")
def test_a_gradient_and_autocast_go_through_the_module():
    linear, x = nn.Linear(256, 256), torch.randn(1, 1, 256)
    projection.project([linear], x)[0].sum().backward()
    assert torch.equal(linear.weight.grad, x[0].expand(256, 256))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert projection.project([linear], x)[0].dtype == torch.bfloat16


@pytest.mark.usefixtures("way")
def test_what_counts_traces_or_transforms_operations_sees_them():
    linear, x = nn.Linear(256, 256), torch.randn(3, 1, 1, 256)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            projection.project([linear], x[0])
        assert counter.get_total_flops() == 2 * 256 * 256
        traced = make_fx(lambda row: projection.project([linear], row)[0])(x[0])
        assert_close(traced(x[1]), expected(linear, x[1]), torch.float32)
        rows = torch.func.vmap(lambda row: projection.project([linear], row)[0])(x)
        assert_close(rows, expected(linear, x), torch.float32)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_stands_in_a_parameter_s_place_is_read(name):
    linear, x = nn.Linear(256, 256), torch.randn(1, 1, 256)
    tensor = getattr(linear, name).detach()
    delattr(linear, name)
    setattr(linear, name, 2 * tensor)
    with torch.no_grad():
        assert torch.equal(projection.project([linear], x)[0], linear(x))
