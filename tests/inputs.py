"""Random inputs for any spec: NumPy for the oracle, torch for `attend`, from the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

import polyhead as ph

Array = NDArray[Any]

INPUTS = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a call of `attend` takes.

    Attributes:
        spec: The mechanism.
        learned: query, key, value (not with `Latent`) and every learned tensor, by name: what has a gradient.
        given: Positions, key mask and segments, as far as they are given.
    """

    spec: ph.AttentionSpec
    learned: Mapping[str, Array]
    given: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def draw(
        cls, spec: ph.AttentionSpec, rng: np.random.Generator | int, *, batch: int = 2, q_len: int = 5, kv_len: int = 5
    ) -> Self:
        """Draw inputs; λ of a differential spec stays near its λ_init."""
        rng = np.random.default_rng(rng)
        lengths = {"query": q_len, "key": kv_len, "value": kv_len}
        learned = {}
        for name, shape in spec.input_shapes().items():
            if shape is not None:
                learned[name] = rng.standard_normal((batch, shape[0], lengths[name], shape[1]))
        for name, shape in spec.parameter_shapes().items():
            learned[name] = _parameter(name, shape, rng)
        return cls(spec, learned)

    def giving(self, **given: Array) -> Self:
        """Return the same inputs with positions, a key mask or segments."""
        return dataclasses.replace(self, given={**self.given, **given})

    def changing(self, **learned: Array) -> Self:
        """Return the same inputs with other tensors."""
        return dataclasses.replace(self, learned={**self.learned, **learned})

    def rounded(self, dtype: torch.dtype) -> Self:
        """Return the inputs as they are after rounding to a dtype; learned parameters stay."""
        names = [name for name in INPUTS if name in self.learned]
        return self.changing(**{n: torch.tensor(self.learned[n]).to(dtype).double().numpy() for n in names})

    def oracle(self, **options: Any) -> Any:
        """Run the oracle."""
        return ph.oracle.attend(**_arguments(self.learned), spec=self.spec, **self.given, **options)

    def tensors(self, dtype: torch.dtype, *, requires_grad: bool = False) -> dict[str, torch.Tensor]:
        """Return the learned tensors in torch."""
        return {n: torch.tensor(a, dtype=dtype, requires_grad=requires_grad) for n, a in self.learned.items()}

    def attend(self, tensors: torch.dtype | Mapping[str, torch.Tensor], **options: Any) -> Any:
        """Run `attend`, in a dtype or on given tensors."""
        if isinstance(tensors, torch.dtype):
            tensors = self.tensors(tensors)
        given = {name: torch.tensor(array) for name, array in self.given.items()}
        return ph.attend(**_arguments(tensors), spec=self.spec, **given, **options)


def _arguments(tensors: Mapping[str, Any]) -> dict[str, Any]:
    params = {name: tensor for name, tensor in tensors.items() if name not in INPUTS}
    return {**{name: tensors.get(name) for name in INPUTS}, "params": params}


def _parameter(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    drawn = rng.standard_normal(shape)
    if name.startswith("lambda"):
        return 0.1 * drawn
    if name in ("w_uk", "w_uv"):
        return drawn / np.sqrt(shape[-1])
    return 1.0 + 0.1 * drawn if name == "sub_norm" else 0.5 * drawn


def spec(storage: str = "mha", **choices: Any) -> ph.AttentionSpec:
    """Return a small spec: four heads of width 8, stored as named, and the choices given."""
    storages: dict[str, Any] = {
        "mha": ph.Grouped(num_heads=4, head_dim=8),
        "gqa": ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8),
        "mqa": ph.Grouped(num_heads=4, num_kv_heads=1, head_dim=8),
        "mla": ph.Latent(num_heads=4, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=8, v_head_dim=5),
    }
    return ph.AttentionSpec(storage=storages[storage], **choices)


VARIED: dict[str, dict[str, Any]] = {
    "dense": {"pattern": ph.Causal(), "position": ph.Rotary()},
    "masked": {"pattern": ph.SlidingWindow.causal(3) | ph.Global(first=1)},
    "softcap and ALiBi": {"weighting": ph.Softmax(softcap=5.0), "position": ph.Alibi()},
    "sink and T5": {"weighting": ph.Softmax(sink=True), "position": ph.RelativeBias.t5(num_buckets=8, max_distance=6)},
    "Shaw": {"position": ph.RelativeBias.shaw(max_distance=2)},
    "linear": {"weighting": ph.Linear(), "position": ph.Rotary(), "pattern": ph.Causal()},
    "paper": {"weighting": ph.Differential()},
    "clipped": {"weighting": ph.Differential(form="clipped")},
}
"""Choices that between them go through every branch of the flow, for tests of the flow itself."""
