"""The two engines: which there are, and what each needs."""

import importlib

import pytest

import polyhead as ph
from polyhead.compare.engine import check_engine
from polyhead.errors import MissingExtraError, UnknownNameError


def test_an_engine_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="no engine is called 'jax'; use one of numpy, torch"):
        ph.AttentionComparison(engine="jax")
    with pytest.raises(UnknownNameError, match="no engine is called 'pytorch'; did you mean torch"):
        check_engine("pytorch")


def test_torch_is_asked_for_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    check_engine("numpy")
    with pytest.raises(MissingExtraError, match=r"engine='torch' needs torch.*pip install 'polyhead\[torch\]'"):
        check_engine("torch")
