"""`polyhead explain`: the kernel, the reasons against the others, and what asking for one does."""

from __future__ import annotations

import json

import pytest

import polyhead as ph
from tests.cli.conftest import Polyhead

torch = pytest.importorskip("torch", reason="kernels run in torch")


def test_it_says_what_python_says(call: Polyhead) -> None:
    done = call("explain", "alibi", "--q-len", "7", "--kv-len", "9", "--dtype", "bfloat16", "--grad")
    expected = ph.explain(ph.mechanism("alibi").spec, q_len=7, kv_len=9, dtype=torch.bfloat16, needs_grad=True)
    assert done == (0, f"{expected}\n", "")


def test_json(call: Polyhead) -> None:
    done = call("explain", "gqa", "--json")
    data = json.loads(done.out)
    expected = ph.explain(ph.mechanism("gqa").spec, q_len=1, kv_len=4096)
    assert (done.code, data["schema"], data["kernel"]) == (0, 1, expected.kernel)
    assert (data["summary"], data["others"]) == (expected.summary, expected.others)
    assert ph.AttentionSpec.from_json(json.dumps({"schema": 1, **data["spec"]})) == ph.mechanism("gqa").spec


@pytest.mark.parametrize(
    ("name", "option", "before", "after"),
    [
        ("gqa", "--dropout", "decode", "plain"),
        ("gqa", "--weights", "decode", "plain"),
        ("linear", "--segments", "linear", "plain"),
        ("mla", "--dropout", "absorbed", "plain"),
    ],
)
def test_what_is_asked_for_besides_changes_the_choice(
    call: Polyhead, monkeypatch: pytest.MonkeyPatch, name: str, option: str, before: str, after: str
) -> None:
    monkeypatch.setattr("polyhead.kernels.compiled.unavailable", lambda: "numba is not installed")
    kernels = [json.loads(call("explain", name, "--json", *more).out)["kernel"] for more in ([], [option])]
    assert kernels == [before, after]


@pytest.mark.parametrize(
    ("option", "name"), [("--given-positions", "aligned"), ("--key-mask", "key_mask"), ("--segments", "segments")]
)
def test_options_reach_the_case(call: Polyhead, monkeypatch: pytest.MonkeyPatch, option: str, name: str) -> None:
    from polyhead.kernels import select

    seen = []
    explain = select.explain_case
    monkeypatch.setattr(select, "explain_case", lambda case: seen.append(case) or explain(case))
    call("explain", "causal")
    call("explain", "causal", option)
    without, given = (getattr(case, name) for case in seen)
    assert without != given


def test_a_kernel_that_runs_is_no_more_than_explained(call: Polyhead) -> None:
    assert call("explain", "gqa", "--kernel", "plain") == call("explain", "gqa")


def test_a_kernel_that_auto_passes_over_is_no_negative_answer(call: Polyhead) -> None:
    assert call("explain", "mla", "--kernel", "dense") == call("explain", "mla")


def test_a_kernel_that_refuses_is_a_negative_answer(call: Polyhead) -> None:
    done = call("explain", "alibi", "--kernel", "dense", "--grad")
    assert (done.code, done.out) == (1, call("explain", "alibi", "--grad").out)
    assert done.err.startswith("polyhead: kernel='dense' does not run this: ")
    assert done.err.endswith("use kernel='auto', which picks 'plain'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gqa", "--kernel", "dens"], "no kernel is called 'dens'; did you mean dense?"),
        (["gqa", "--device", "toaster"], "'toaster' is no device that torch knows"),
        (["gqa", "--dtype", "int8"], "'int8' is not one of 'float64', 'float32', 'bfloat16', 'float16'"),
        (["gqa", "--q-len", "-1"], "-1 is not in the range x>=0"),
        (["gqaa"], "did you mean gqa?"),
    ],
)
def test_wrong_input(call: Polyhead, arguments: list[str], message: str) -> None:
    done = call("explain", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
