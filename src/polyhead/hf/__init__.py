"""The bridge to transformers: checkpoints loaded, and what their attention layers see, captured."""

from polyhead.hf.capture import Captured, capture
from polyhead.hf.load import Loaded, load, locate

__all__ = ["Captured", "Loaded", "capture", "load", "locate"]
