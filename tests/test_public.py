"""The public names: each resolves, is documented, and is known to type checkers and to `dir`."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import sys
from pathlib import Path

import pytest

import polyhead as ph

VALUES = {"__version__", "EXAMPLE", "TEXTBOOK"}


def typed_names() -> dict[str, str]:
    """Return what the TYPE_CHECKING block imports: each name and the module that it comes from."""
    tree = ast.parse(Path(ph.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name  # the form that type checkers take for a re-export
            found[alias.name] = statement.module or ""
    return found


def test_all_is_what_type_checkers_see() -> None:
    assert sorted([*typed_names(), "__version__"]) == ph.__all__


@pytest.mark.parametrize("name", typed_names())
def test_a_name_is_what_type_checkers_take_it_for(name: str) -> None:
    home = importlib.import_module(typed_names()[name])
    assert getattr(ph, name) is getattr(home, name)


@pytest.mark.parametrize("name", sorted(set(ph.__all__) - VALUES))
def test_a_name_is_documented(name: str) -> None:
    documentation = inspect.getdoc(getattr(ph, name)) or ""
    first = documentation.split("\n\n")[0]
    assert first.endswith("."), f"{name} has no docstring that begins with a sentence"
    assert not first.startswith(f"{name}("), f"{name} has the docstring that dataclass makes up"


def test_dir_lists_the_public_names() -> None:
    assert dir(ph) == ph.__all__


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'polyhead' has no attribute 'Atention'"):
        ph.Atention  # noqa: B018
    assert not hasattr(ph, "compare_all")


def test_version_is_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"polyhead": "1.2.3"}.__getitem__)
    assert ph.__version__ == "1.2.3"


def test_what_needs_torch_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polyhead.attention", None)
    with pytest.raises(ModuleNotFoundError, match=r"polyhead\.attention"):  # broken, which is no missing extra
        ph.attend  # noqa: B018
    monkeypatch.delitem(sys.modules, "polyhead.attention")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ph.MissingExtraError, match=r"polyhead\.attend needs torch.*pip install 'polyhead\[torch\]'"):
        ph.attend  # noqa: B018
