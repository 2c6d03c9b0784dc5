"""What decoding keeps of the past: one class for each way of keeping it, picked from the spec."""

from polyhead.cache.base import Cache
from polyhead.cache.context import ContextCache
from polyhead.cache.files import load
from polyhead.cache.growing import GrowingCache
from polyhead.cache.make import new_cache
from polyhead.cache.rolling import RollingCache
from polyhead.cache.state import StateCache

__all__ = ["Cache", "ContextCache", "GrowingCache", "RollingCache", "StateCache", "load", "new_cache"]
