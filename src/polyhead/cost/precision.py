"""How many bits a number takes, for each part of a model by itself."""

from __future__ import annotations

import dataclasses

from polyhead.errors import SpecError, unknown_name

BITS = {"float32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}
"""Bits of a number, by the name of its format. The scales of quantised formats are not counted: they depend on how."""

PARTS = ("weights", "cache", "activations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """The format of each part.

    ::

        Precision.parse("bf16")
        Precision.parse("weights=int4,cache=fp8")  # activations stay bf16

    Attributes:
        weights: That of the parameters, a key of `BITS`.
        cache: That of stored keys and values, or latent rows; sums of linear weighting are float32 at least.
        activations: That of everything between, which decides at which rate a device multiplies.
    """

    weights: str = "bf16"
    cache: str = "bf16"
    activations: str = "bf16"

    def __post_init__(self) -> None:
        for part in PARTS:
            if getattr(self, part) not in BITS:
                raise unknown_name(f"precision for {part}", str(getattr(self, part)), list(BITS))
        if self.activations == "int4":
            raise SpecError("activations=int4: nothing multiplies activations of 4 bits here; give int8 or fp8")

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read one format for all parts, or some parts' own; the others stay bf16.

        Args:
            text: ``"fp16"``, or ``"weights=int4,cache=fp8"``.

        Returns:
            The precision.

        Raises:
            SpecError: If a part is named twice, or an entry is no ``part=format``.
            UnknownNameError: If a part or a format has no such name.
        """
        if "=" not in text:
            name = text.strip()
            return cls(**dict.fromkeys(PARTS, name)) if name != "int4" else cls(weights=name, cache=name)
        given: dict[str, str] = {}
        for entry in text.split(","):
            part, equals, name = (piece.strip() for piece in entry.partition("="))
            if not equals:
                raise SpecError(f"precision {entry.strip()!r} names no part; write as in weights=int4,cache=fp8")
            if part not in PARTS:
                raise unknown_name("part", part, list(PARTS))
            if part in given:
                raise SpecError(f"precision names {part} twice; name it once")
            given[part] = name
        return cls(**given)

    def bytes_of(self, part: str, numbers: float) -> int:
        """Return the bytes that so many numbers of a part take, a part of a byte counting as one."""
        return -int(-numbers * BITS[getattr(self, part)] // 8)

    def __str__(self) -> str:
        formats = [getattr(self, part) for part in PARTS]
        return formats[0] if len(set(formats)) == 1 else ",".join(map("=".join, zip(PARTS, formats, strict=True)))


def precision_of(given: Precision | str) -> Precision:
    """Return a precision, read from text if need be."""
    return given if isinstance(given, Precision) else Precision.parse(given)
