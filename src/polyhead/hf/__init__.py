"""The bridge to transformers: checkpoints loaded, texts generated, layers' inputs captured, our attention in models.

`register` lets a model call `polyhead.attend` where it would call another attention function; `adopt` replaces its
attention modules and caches by ours.
"""

from polyhead.hf.adopt import adopt, release
from polyhead.hf.capture import Captured, capture
from polyhead.hf.generate import Generation, Sampling, generate
from polyhead.hf.load import Loaded, load, locate
from polyhead.hf.register import check, register

__all__ = [
    "Captured",
    "Generation",
    "Loaded",
    "Sampling",
    "adopt",
    "capture",
    "check",
    "generate",
    "load",
    "locate",
    "register",
    "release",
]
