"""Each peer, given the tensors and weights of a case, computes what ours does; what cannot run says why."""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import sys
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.bench import peers as module
from polyhead.bench.case import Case
from polyhead.bench.cases import CASES, case
from polyhead.bench.checks import difference
from polyhead.bench.contender import Contender
from polyhead.bench.peers import PEERS
from polyhead.bench.work import Work, free_memory
from polyhead.spec import AnyOf
from tests.tolerances import assert_close

LENGTH = 48
WINDOW = ph.SlidingWindow.causal(7)
NEEDS = {"t5-sdpa": "transformers", "t5-eager": "transformers", "mistral-sdpa": "transformers"}
NEEDS |= {"bigbird": "transformers", "diffllama-sdpa": "transformers", "deepseek-v2-sdpa": "transformers"}
NEEDS |= {"fla-naive": "fla.ops.linear_attn.naive", "x-transformers": "x_transformers"}


def narrowed(pattern: Any) -> Any:
    """Return a pattern of a case so small that a few tokens show all of it."""
    if isinstance(pattern, ph.Band):
        return pattern if pattern.left is None else WINDOW
    if isinstance(pattern, AnyOf) and any(isinstance(part, ph.RandomLinks) for part in pattern.parts):
        links = ph.RandomLinks(per_query=1, seed=0, block=4, span="all")
        return ph.Chunked(size=4, left=1, right=1) | ph.Global(first=4, last=4) | links
    return ph.Causal() & (WINDOW | ph.Global(first=2))


def tiny(name: str, length: int = LENGTH, **changes: Any) -> Case:
    """Return a case at a small length, its pattern narrowed as much."""
    found = case(name).at(length)
    attention = dataclasses.replace(found.attention, pattern=narrowed(found.attention.pattern))
    spec = attention if found.layer is None else dataclasses.replace(found.layer, attention=attention)
    return dataclasses.replace(found, spec=spec, **changes)


def built(work: Work, peer: str) -> Contender:
    if peer in NEEDS:
        pytest.importorskip(NEEDS[peer], reason=f"the peer is {NEEDS[peer]}, which is not installed")
    made = PEERS[peer].build(work)
    assert isinstance(made, Contender), made
    return made


COMPARED = [(one.name, peer) for one in CASES for peer in one.peers]


@pytest.mark.parametrize(("name", "peer"), [(n, p) for n, p in COMPARED if p != "flex"])
def test_a_peer_computes_what_ours_does_where_it_says_so(name: str, peer: str) -> None:
    length = 64 if peer == "fla-naive" else LENGTH
    rounded = peer == "fla-naive" or name in ("window-layer", "differential-layer", "mla-layer")  # float32 cos and sin
    work = Work.of(tiny(name, length), torch.float32 if rounded else torch.float64)
    made = built(work, peer)
    theirs = made.run()
    ours = work.ours(made.spec)()
    last = theirs[0][..., -ours[0].shape[-2] :, :]
    if made.same:
        assert_close(ours[0], last, work.dtype)
        for own, other in zip(ours[1:2], theirs[1:2], strict=True):
            assert_close(own, other, work.dtype, what="gradient")
    else:
        assert difference(ours[0], last) > 1e-3


NOT_SAME = {("alibi-causal", "sdpa"), ("alibi", "sdpa"), ("t5", "sdpa"), ("window", "sdpa"), ("window-first", "window")}
NOT_SAME |= {("linear", "sdpa"), ("differential", "sdpa")}
NOT_SAME |= {("train-window", "sdpa"), ("train-alibi", "sdpa"), ("train-t5", "sdpa")}


@pytest.mark.parametrize(("name", "peer"), [(n, p) for n, p in COMPARED if p != "flex"])
def test_all_but_the_plain_bases_are_compared(name: str, peer: str) -> None:
    assert built(Work.of(tiny(name, 64), torch.float32), peer).same == ((name, peer) not in NOT_SAME)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["alibi-causal", "window-first"])
def test_flex_computes_what_ours_does(monkeypatch: pytest.MonkeyPatch, name: str, backend: str) -> None:
    """Traced as it is timed; to machine code, which takes a C++ compiler ten seconds, only among the slow ones."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    work = Work.of(tiny(name), torch.float32)
    made = PEERS["flex"].build(work)
    if isinstance(made, str):
        pytest.skip(made)
    assert made.same
    assert_close(made.run()[0], work.ours()()[0], torch.float32)


def test_flex_counts_the_queries_of_a_cached_prefix_from_its_end() -> None:
    pattern = ph.Causal() & (WINDOW | ph.Global(first=2))
    seen = module._mask_mod(pattern, 40)
    queries, keys = torch.arange(8)[:, None], torch.arange(48)[None]
    expected = pattern.allowed(torch.arange(40, 48), torch.arange(48), kv_len=48)
    assert torch.equal(seen(None, None, queries, keys), expected)


# --- what a peer is given ------------------------------------------------------------------------


def test_training_gives_a_layers_peer_the_gradients_of_its_own_parameters() -> None:
    work = Work.of(tiny("train-t5-layer"), torch.float64)
    _, x, *others = built(work, "t5-sdpa").run()
    _, own, *ours = work.ours()()
    assert_close(x, own, torch.float64)
    assert sorted(tuple(gradient.shape) for gradient in others) == sorted(tuple(gradient.shape) for gradient in ours)


@pytest.mark.parametrize("length", [48, 4096])
def test_bigbird_draws_once_and_keeps_its_blocks(length: int) -> None:
    """At 4096 tokens it draws head by head, else for all heads at once."""
    pytest.importorskip("transformers", reason="the peer is transformers, which is not installed")
    from polyhead.bench.layers import _draw_once

    class Drawing(torch.nn.Module):
        def _bigbird_block_rand_mask(self) -> np.ndarray:
            return np.random.randint(0, 1000, (5, 3))  # noqa: NPY002 - as it does

        def _bigbird_block_rand_mask_with_head(self) -> list[np.ndarray]:
            return list(np.random.randint(0, 1000, (8, 5, 3)))  # noqa: NPY002

        def draws(self) -> Any:
            if length == 4096:
                return [self._bigbird_block_rand_mask() for _ in range(8)]
            return self._bigbird_block_rand_mask_with_head()

    drawing, state = Drawing(), np.random.get_state()[1].copy()  # noqa: NPY002
    kept = _draw_once(drawing, drawing.draws, 8)
    assert kept.shape == (8, 5, 3)
    for _ in range(2):
        assert np.array_equal(np.stack(drawing.draws()), kept)
    assert not drawing.training
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("length", [768, 3072])
def test_bigbirds_own_blocks_are_ours_at_each_of_its_ways_to_draw(length: int) -> None:
    """At 3072 tokens it draws for 4096 and uses the first; the heads are narrow, since what is drawn are blocks."""
    found = case("bigbird-layer").at(length)
    narrow = dataclasses.replace(found.attention, storage=dataclasses.replace(found.attention.storage, head_dim=8))
    spec = dataclasses.replace(found.layer, attention=narrow, embed_dim=64)
    work = Work.of(dataclasses.replace(found, spec=spec), torch.float64)
    made = built(work, "bigbird")
    assert_close(work.ours(made.spec)()[0], made.run()[0], torch.float64)


def test_bigbird_is_left_out_where_it_counts_a_block_twice() -> None:
    pytest.importorskip("transformers", reason="the peer is transformers, which is not installed")
    made = PEERS["bigbird"].build(Work.of(case("bigbird-layer").at(1024), torch.float32))
    assert made == "at 1024 tokens BigBird draws the last block, which every query sees, and counts it twice"


# --- reasons -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "name", "reason"),
    [
        ("flex", "train-window", "no backward pass on the CPU"),
        ("flex", "t5", "without a bias and for ALiBi, not for RelativeBias.t5"),
        ("flex", "differential", "for grouped heads and softmax"),
        ("sdpa-mask", "causal", "it adds a bias, and NoPosition"),
        ("sdpa-mask", "train-t5", "no gradient would reach the table"),
        ("window", "causal", "has no window"),
        ("t5-sdpa", "alibi-layer", "T5's layer has T5's bias, not Alibi"),
        ("mistral-sdpa", "mla-layer", "Mistral has a causal window"),
        ("diffllama-sdpa", "window-layer", "its own form of differential weighting"),
        ("deepseek-v2-sdpa", "window-layer", "DeepSeek-V2 stores a latent"),
        ("bigbird", "window-layer", "BigBird has random blocks"),
    ],
)
def test_what_a_peer_does_not_do_it_says(peer: str, name: str, reason: str) -> None:
    if peer in NEEDS:
        pytest.importorskip(NEEDS[peer], reason=f"the peer is {NEEDS[peer]}, which is not installed")
    made = PEERS[peer].build(Work.of(tiny(name), torch.float32))
    assert isinstance(made, str)
    assert reason in made


class Without(importlib.abc.MetaPathFinder):
    """Find everything but one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("peer", "name", "package", "install"),
    [
        ("t5-sdpa", "t5-layer", "transformers", "transformers"),
        ("x-transformers", "alibi-layer", "x_transformers", "x-transformers"),
        ("fla-naive", "linear", "fla", "fla-core[cpu]"),
    ],
)
def test_a_peer_that_is_not_installed_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, peer: str, name: str, package: str, install: str
) -> None:
    for module_name in [found for found in sys.modules if found.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module_name)
    monkeypatch.setattr(sys, "meta_path", [Without(package), *sys.meta_path])
    made = PEERS[peer].build(Work.of(tiny(name), torch.float32))
    assert isinstance(made, str)
    assert made == f"{package} is not installed; type: pip install '{install}'"


@pytest.mark.parametrize(("peer", "name"), [("sdpa", "mla"), ("sdpa-mask", "alibi"), ("t5-eager", "t5-layer")])
def test_a_peer_whose_matrix_has_no_room_says_so(monkeypatch: pytest.MonkeyPatch, peer: str, name: str) -> None:
    if peer in NEEDS:
        pytest.importorskip(NEEDS[peer], reason=f"the peer is {NEEDS[peer]}, which is not installed")
    monkeypatch.setattr("polyhead.bench.work.free_memory", lambda: 1000.0)
    made = PEERS[peer].build(Work.of(tiny(name), torch.float32))
    assert isinstance(made, str)
    assert made.startswith("needs ")
    assert made.endswith("GiB are free")


def test_flash_linear_attention_takes_whole_chunks() -> None:
    pytest.importorskip(NEEDS["fla-naive"], reason="the peer is flash-linear-attention, which is not installed")
    made = PEERS["fla-naive"].build(Work.of(tiny("linear", 65), torch.float32))
    assert made == "it takes multiples of 64 tokens, not 65"


def test_there_is_some_memory_free() -> None:
    assert free_memory() > 2**20
