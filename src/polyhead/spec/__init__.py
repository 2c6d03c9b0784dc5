"""What is asked for: an attention mechanism as four choices, frozen and written as data. No torch here."""

from polyhead.spec.attention import SCHEMA, AttentionSpec, LayerSpec
from polyhead.spec.caching import Retention, retention
from polyhead.spec.combined import AllOf, AnyOf
from polyhead.spec.links import BigBird, Links, RandomLinks
from polyhead.spec.pattern import Band, Causal, Chunked, Full, Global, Pattern, SlidingWindow
from polyhead.spec.position import Alibi, NoPosition, Position, RelativeBias, Rotary
from polyhead.spec.scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NTKScaling,
    Scaling,
    YarnScaling,
)
from polyhead.spec.storage import Grouped, Latent, Storage
from polyhead.spec.weighting import Differential, Linear, Softmax, Weighting

__all__ = [
    "SCHEMA",
    "Alibi",
    "AllOf",
    "AnyOf",
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
    "Pattern",
    "Position",
    "RandomLinks",
    "RelativeBias",
    "Retention",
    "Rotary",
    "Scaling",
    "SlidingWindow",
    "Softmax",
    "Storage",
    "Weighting",
    "YarnScaling",
    "retention",
]
