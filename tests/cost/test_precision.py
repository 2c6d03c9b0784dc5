"""Formats by part: what is read, what is refused, and the bytes that follow."""

import pytest

from polyhead.cost import BITS, Precision
from polyhead.errors import SpecError, UnknownNameError


@pytest.mark.parametrize("name", [name for name in BITS if name != "int4"])
def test_one_format_is_that_of_all_parts(name):
    assert Precision.parse(name) == Precision(weights=name, cache=name, activations=name)
    assert str(Precision.parse(name)) == name


def test_parts_have_their_own():
    parsed = Precision.parse("weights=int4, cache=fp8")
    assert parsed == Precision(weights="int4", cache="fp8", activations="bf16")
    assert Precision.parse(str(parsed)) == parsed


def test_four_bits_are_for_what_is_stored():
    assert Precision.parse("int4") == Precision(weights="int4", cache="int4", activations="bf16")
    with pytest.raises(SpecError, match="activations=int4"):
        Precision.parse("activations=int4")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("bf15", UnknownNameError, "bf16"),
        ("", UnknownNameError, "float32"),
        ("weight=int8", UnknownNameError, "weights"),
        ("weights=int8,weights=fp8", SpecError, "twice"),
        ("weights=int8,fp8", SpecError, "names no part"),
        ("weights=", UnknownNameError, "int8"),
    ],
)
def test_what_is_wrong_is_said(text, error, said):
    with pytest.raises(error, match=said):
        Precision.parse(text)


@pytest.mark.parametrize(
    ("name", "numbers", "expected"), [("int4", 3, 2), ("int4", 4, 2), ("fp8", 3, 3), ("bf16", 3, 6)]
)
def test_bytes_are_whole(name, numbers, expected):
    assert Precision(weights=name).bytes_of("weights", numbers) == expected
