"""Every error that polyhead raises on purpose.

::

    PolyheadError
    ├── SpecError         (ValueError)           the four choices do not fit together
    ├── ShapeError        (ValueError)           a tensor does not fit the spec
    ├── UnsupportedError  (NotImplementedError)  well defined, but not by the kernel or reader asked
    ├── UnknownNameError  (LookupError)          no mechanism, token, model or kernel of that name
    ├── CheckpointError   (OSError)              a checkpoint is missing, broken or not what it says
    └── MissingExtraError (ImportError)          an optional dependency is not installed

A message says which argument, what came, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class PolyheadError(Exception):
    """The root of every error that polyhead raises on purpose."""


class SpecError(PolyheadError, ValueError):
    """A spec, or a part of one, describes nothing that is defined."""


class ShapeError(PolyheadError, ValueError):
    """A tensor's shape, dtype or device does not fit the spec or its neighbours."""


class UnsupportedError(PolyheadError, NotImplementedError):
    """What was asked is well defined, but not done by the kernel or reader asked."""


class UnknownNameError(PolyheadError, LookupError):
    """A name that nothing here goes by."""


class CheckpointError(PolyheadError, OSError):
    """A checkpoint is missing, unreadable, or not what its files say."""


class MissingExtraError(PolyheadError, ImportError):
    """A feature needs an optional dependency that is not installed."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name not found, with the nearest names that exist.

    Args:
        kind: What was looked up, such as ``"mechanism"``.
        name: What was asked for.
        known: The names that exist, in the order to list them.

    Returns:
        The error, to be raised by the caller.
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(names)}"
    return UnknownNameError(f"no {kind} is called {name!r}; {hint}")


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: The module to import, such as ``"torch"``.
        extra: The extra that installs it.
        purpose: What it is needed for, as the subject of a sentence.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there and something inside it is broken: that is no missing extra
        raise MissingExtraError(
            f"{purpose} needs {module}, which is not installed; type: pip install 'polyhead[{extra}]'"
        ) from error
