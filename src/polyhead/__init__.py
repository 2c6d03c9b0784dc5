"""polyhead: an attention mechanism is four choices, written as data.

::

    import polyhead as ph

    spec = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=32, num_kv_heads=8, head_dim=128),
        position=ph.Rotary(theta=500_000.0),
        pattern=ph.Causal(),
    )
    output = ph.attend(query, key, value, spec)
    ph.AttentionComparison().table(token="cat")

Names are imported when they are first used, so that importing polyhead imports neither NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyhead import cache as cache, cost as cost, oracle as oracle
    from polyhead.attention import Attention as Attention, attend as attend
    from polyhead.catalog import (
        EXAMPLE as EXAMPLE,
        TEXTBOOK as TEXTBOOK,
        Device as Device,
        Mechanism as Mechanism,
        Model as Model,
        Settings as Settings,
        device as device,
        devices as devices,
        hf_config as hf_config,
        mechanism as mechanism,
        mechanisms as mechanisms,
        model as model,
        models as models,
    )
    from polyhead.compare import AttentionComparison as AttentionComparison
    from polyhead.errors import (
        CheckpointError as CheckpointError,
        MissingExtraError as MissingExtraError,
        PolyheadError as PolyheadError,
        ShapeError as ShapeError,
        SpecError as SpecError,
        UnknownNameError as UnknownNameError,
        UnsupportedError as UnsupportedError,
    )
    from polyhead.kernels.select import explain as explain
    from polyhead.planner import Plan as Plan, plan as plan
    from polyhead.spec import (
        Alibi as Alibi,
        AttentionSpec as AttentionSpec,
        Band as Band,
        BigBird as BigBird,
        Causal as Causal,
        Chunked as Chunked,
        Differential as Differential,
        DynamicNTKScaling as DynamicNTKScaling,
        Full as Full,
        Global as Global,
        Grouped as Grouped,
        Latent as Latent,
        LayerSpec as LayerSpec,
        Linear as Linear,
        LinearScaling as LinearScaling,
        Links as Links,
        Llama3Scaling as Llama3Scaling,
        LongRopeScaling as LongRopeScaling,
        NoPosition as NoPosition,
        NTKScaling as NTKScaling,
        RandomLinks as RandomLinks,
        RelativeBias as RelativeBias,
        Rotary as Rotary,
        SlidingWindow as SlidingWindow,
        Softmax as Softmax,
        YarnScaling as YarnScaling,
    )

_HOME = {
    "polyhead": ("cache", "cost", "oracle"),
    "polyhead.attention": ("Attention", "attend"),
    "polyhead.catalog": (
        "EXAMPLE",
        "TEXTBOOK",
        "Device",
        "Mechanism",
        "Model",
        "Settings",
        "device",
        "devices",
        "hf_config",
        "mechanism",
        "mechanisms",
        "model",
        "models",
    ),
    "polyhead.compare": ("AttentionComparison",),
    "polyhead.errors": (
        "CheckpointError",
        "MissingExtraError",
        "PolyheadError",
        "ShapeError",
        "SpecError",
        "UnknownNameError",
        "UnsupportedError",
    ),
    "polyhead.kernels.select": ("explain",),
    "polyhead.planner": ("Plan", "plan"),
    "polyhead.spec": (
        "Alibi",
        "AttentionSpec",
        "Band",
        "BigBird",
        "Causal",
        "Chunked",
        "Differential",
        "DynamicNTKScaling",
        "Full",
        "Global",
        "Grouped",
        "Latent",
        "LayerSpec",
        "Linear",
        "LinearScaling",
        "Links",
        "Llama3Scaling",
        "LongRopeScaling",
        "NTKScaling",
        "NoPosition",
        "RandomLinks",
        "RelativeBias",
        "Rotary",
        "SlidingWindow",
        "Softmax",
        "YarnScaling",
    ),
}
"""Where each public name lives."""

__all__ = sorted([name for names in _HOME.values() for name in names] + ["__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("polyhead")
    for home, names in _HOME.items():
        if name in names:
            return _member(home, name)
    raise AttributeError(f"module 'polyhead' has no attribute {name!r}")


def _member(home: str, name: str) -> Any:
    try:
        if home == "polyhead":  # a module, not something in one
            return importlib.import_module(f"{home}.{name}")
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "jaxtyping"}:
            raise
        from polyhead.errors import MissingExtraError

        raise MissingExtraError(
            f"polyhead.{name} needs {error.name}, which is not installed; type: pip install 'polyhead[torch]'"
        ) from error


def __dir__() -> list[str]:
    return __all__
