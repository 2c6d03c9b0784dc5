"""Devices by name, as their makers describe them: memory, bandwidth, and rates of dense products.

Makers give rates with structured sparsity beside, or in place of, dense ones; here they are dense. Where rates depend
on how sums are kept, these are with sums in float32. NVIDIA's figures for A100, H100, H200, B200 and L40S were compared
with copies in public places (LLM-Prof's hardware_spec.md, gpu-datasheet's README, hmc-tech.com). Memory is counted in
GiB, as systems show it.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.catalog.device import Device
from polyhead.errors import unknown_name

_AMPERE = {"float32": 19.5, "bf16": 312.0, "fp16": 312.0, "int8": 624.0}
_HOPPER = {"float32": 66.9, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "int8": 1978.9}


def _rates(float32: float, bf16: float, fp8: float, int8: float) -> dict[str, float]:
    return {"float32": float32, "bf16": bf16, "fp16": bf16, "fp8": fp8, "int8": int8}


_A100, _H100, _H200 = "NVIDIA A100 data sheet", "NVIDIA H100 white paper and data sheet", "NVIDIA H200 data sheet"
_B200 = "NVIDIA DGX B200 data sheet, an eighth of its eight GPUs"
_L4, _L40S = "NVIDIA L4 data sheet, half of its rates with sparsity", "NVIDIA L40S data sheet"
_ADA, _BLACKWELL = "NVIDIA Ada white paper, appendix A", "NVIDIA RTX Blackwell white paper, appendix A"
_MI300X = "AMD Instinct MI300X data sheet"
_MACBOOK, _STUDIO = "Apple, MacBook Pro technical specifications", "Apple, Mac Studio technical specifications"
_EPYC = "AMD: 12 × DDR5-4800 of 64 GB; 96 cores × 2.4 GHz × 32 operations in float32, 64 in bf16"

_ROWS: tuple[tuple[str, str, int, float, Mapping[str, float], str, str], ...] = (
    ("a100-40", "NVIDIA A100 SXM 40 GB", 40, 1555, _AMPERE, _A100, "2021"),
    ("a100-80", "NVIDIA A100 SXM 80 GB", 80, 2039, _AMPERE, _A100, "2021"),
    ("h100", "NVIDIA H100 SXM 80 GB", 80, 3350, _HOPPER, _H100, "2023"),
    ("h200", "NVIDIA H200 SXM 141 GB", 141, 4800, _HOPPER, _H200, "2024"),
    ("b200", "NVIDIA B200 180 GB", 180, 8000, _rates(75.0, 2250.0, 4500.0, 4500.0), _B200, "2024"),
    ("l4", "NVIDIA L4 24 GB", 24, 300, _rates(30.3, 121.0, 242.5, 242.5), _L4, "2023"),
    ("l40s", "NVIDIA L40S 48 GB", 48, 864, _rates(91.6, 362.05, 733.0, 733.0), _L40S, "2023"),
    ("rtx-4090", "NVIDIA GeForce RTX 4090 24 GB", 24, 1008, _rates(82.6, 165.2, 330.3, 660.6), _ADA, "2022"),
    ("rtx-5090", "NVIDIA GeForce RTX 5090 32 GB", 32, 1792, _rates(104.8, 209.5, 419.0, 838.0), _BLACKWELL, "2025"),
    ("mi300x", "AMD Instinct MI300X 192 GB", 192, 5300, _rates(163.4, 1307.4, 2614.9, 2614.9), _MI300X, "2023"),
    ("m3-max", "Apple M3 Max 128 GB, 40-core GPU", 128, 400, {}, _MACBOOK, "2023"),
    ("m3-ultra", "Apple M3 Ultra 512 GB, 80-core GPU", 512, 819, {}, _STUDIO, "2025"),
    ("epyc-9654", "AMD EPYC 9654, 768 GB", 768, 460.8, {"float32": 7.37, "bf16": 14.7}, _EPYC, "2022"),
)
"""Name, title, GiB of memory, GB read in a second, 10¹² operations a second by format, source of these, its date."""

DEVICES = tuple(
    Device(
        name=name,
        title=title,
        memory=gib * 2**30,
        bandwidth=read * 1e9,
        rates={precision: rate * 1e12 for precision, rate in rates.items()},
        sources=dict.fromkeys(("memory", "bandwidth", *(("rates",) if rates else ())), source),
        date=date,
    )
    for name, title, gib, read, rates, source, date in _ROWS
)
"""Every device, those of one maker side by side. Apple publishes no rates, so none are here."""


def devices() -> tuple[Device, ...]:
    """Return the devices of the catalogue."""
    return DEVICES


def device(name: str) -> Device:
    """Look a device up.

    Args:
        name: Its name, in any case, such as ``"a100-80"``.

    Returns:
        The device.

    Raises:
        UnknownNameError: If none goes by that name; the message names the nearest.
    """
    wanted = name.strip().lower()
    for one in DEVICES:
        if one.name == wanted:
            return one
    raise unknown_name("device", name, [one.name for one in DEVICES])
