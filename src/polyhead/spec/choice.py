"""What every part of a spec has in common: frozen, printable, and written as plain data."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from polyhead.errors import SpecError


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Choice:
    """Base of every part of a spec: immutable, keyword-only, compared by value."""

    _shown_as: ClassVar[str | None] = None  # what builds it, where that is not the class's own name

    def __repr__(self) -> str:
        """Return Python that builds this object again, leaving out what is at its default."""
        shown = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        name = self._shown_as or type(self).__name__
        return f"{name}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def _keep(self, check: Callable[..., Any], *names: str, **bounds: float) -> None:
        """Check fields and keep them as plain Python values; None passes where it is the default."""
        for name in names:
            value = getattr(self, name)
            if value is not None or type(self).__dataclass_fields__[name].default is not None:
                object.__setattr__(self, name, check(name, value, **bounds))

    def to_data(self) -> dict[str, Any]:
        """Return this object as JSON-ready data: its type and every field, defaults included."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"type": type(self).__name__, **fields}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Build this class from decoded fields, naming any that it does not have.

        Args:
            fields: Field names and values.

        Returns:
            The object.

        Raises:
            SpecError: If a field is unknown or a required one is missing.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise SpecError(f"{cls.__name__} has no field {unknown[0]!r}; its fields are {', '.join(known)}")
        required = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [name for name in required if name not in fields]:
            raise SpecError(f"{cls.__name__} needs the field {missing[0]!r}")
        return cls(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.to_data()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def as_int(name: str, value: Any, *, at_least: int) -> int:
    """Check a whole number.

    Args:
        name: The argument's name, for the message.
        value: What came.
        at_least: The smallest value allowed.

    Returns:
        The value as a Python int.

    Raises:
        SpecError: If it is not a whole number of at least ``at_least``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < at_least:
        raise SpecError(f"{name}={value!r} is not allowed; give a whole number of at least {at_least}")
    return number


def as_float(name: str, value: Any, *, above: float = -math.inf) -> float:
    """Check a finite number.

    Args:
        name: The argument's name, for the message.
        value: What came.
        above: The value must be greater than this.

    Returns:
        The value as a Python float.

    Raises:
        SpecError: If it is not a finite number above ``above``.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= above:
        bound = "" if above == -math.inf else f" above {above:g}"
        raise SpecError(f"{name}={value!r} is not allowed; give a finite number{bound}")
    return number


def as_floats(name: str, values: Any, *, above: float = -math.inf) -> tuple[float, ...]:
    """Check several finite numbers.

    Args:
        name: The argument's name, for the message.
        values: What came.
        above: Each must be greater than this.

    Returns:
        The values as a tuple of Python floats.

    Raises:
        SpecError: If they are no sequence, or one is not a finite number above ``above``.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise SpecError(f"{name}={values!r} is not allowed; give several numbers, such as a tuple")
    return tuple(as_float(name, value, above=above) for value in values)


def as_flag(name: str, value: Any) -> bool:
    """Check a truth value.

    Args:
        name: The argument's name, for the message.
        value: What came.

    Returns:
        The value.

    Raises:
        SpecError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise SpecError(f"{name}={value!r} is not allowed; use True or False")
    return value


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check a word against the words allowed.

    Args:
        name: The argument's name, for the message.
        value: What came.
        allowed: The words allowed.

    Raises:
        SpecError: If it is none of them.
    """
    words = list(allowed)
    if value not in words:
        raise SpecError(f"{name}={value!r} is not allowed; use {' or '.join(map(repr, words))}")


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, smallest first."""
    return [d for d in range(1, number + 1) if number % d == 0]
