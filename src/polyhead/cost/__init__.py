"""What a mechanism costs: arithmetic on a spec, from the same data that runs. Nothing here imports torch."""

from polyhead.cost.cache import CacheBytes, Engine, cache_bytes, expanded
from polyhead.cost.model import (
    Memory,
    Seconds,
    decode_work,
    memory,
    prefill_work,
    seconds,
    training_memory,
    training_work,
)
from polyhead.cost.operations import Work, attended, decode_step, prefill, training_step
from polyhead.cost.pairs import allowed_pairs, computed_pairs
from polyhead.cost.precision import BITS, Precision

__all__ = [
    "BITS",
    "CacheBytes",
    "Engine",
    "Memory",
    "Precision",
    "Seconds",
    "Work",
    "allowed_pairs",
    "attended",
    "cache_bytes",
    "computed_pairs",
    "decode_step",
    "decode_work",
    "expanded",
    "memory",
    "prefill",
    "prefill_work",
    "seconds",
    "training_memory",
    "training_step",
    "training_work",
]
