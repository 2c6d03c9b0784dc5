"""The errors raised on purpose: one tree, and messages that help."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from polyhead import errors
from polyhead.errors import MissingExtraError, PolyheadError, require_extra, unknown_name

BUILTIN = {
    "SpecError": ValueError,
    "ShapeError": ValueError,
    "UnsupportedError": NotImplementedError,
    "UnknownNameError": LookupError,
    "CheckpointError": OSError,
    "MissingExtraError": ImportError,
}


def test_each_error_is_polyhead_s_and_the_built_in_one_that_it_resembles() -> None:
    kinds = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert set(kinds) == {*BUILTIN, "PolyheadError"}
    for name, built_in in BUILTIN.items():
        assert kinds[name].__bases__ == (PolyheadError, built_in)
        assert f"{name} " in (errors.__doc__ or ""), "the tree at the top of the file shows it"


def test_a_name_unknown_but_near_is_guessed() -> None:
    assert str(unknown_name("kernel", "dens", ["dense", "plain"])) == "no kernel is called 'dens'; did you mean dense?"
    several = unknown_name("model", "llama-8b", ["llama-2-8b", "llama-3-8b"])
    assert str(several).endswith("did you mean llama-3-8b or llama-2-8b?")


def test_a_name_far_from_all_gets_the_list() -> None:
    assert str(unknown_name("kernel", 7, ["dense", "plain"])) == "no kernel is called 7; use one of dense, plain"


def test_an_extra_that_is_there_is_imported() -> None:
    assert require_extra("json", "torch", "this test").dumps({}) == "{}"


@pytest.mark.parametrize("module", ["no_such_module", "no_such_module.inner"])
def test_an_extra_that_is_missing_says_what_to_type(module: str) -> None:
    message = f"the plot needs {module}, which is not installed; type: pip install 'polyhead[plot]'"
    with pytest.raises(MissingExtraError, match=f"^{re.escape(message)}$"):
        require_extra(module, "plot", "the plot")


def test_an_extra_that_is_there_and_broken_is_no_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'") as raised:
        require_extra("broken_extra", "plot", "the plot")
    assert not isinstance(raised.value, MissingExtraError)
