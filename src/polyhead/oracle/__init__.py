"""The oracle: every legal spec in NumPy, float64, whole matrices, written to be read and believed."""

from polyhead.oracle.attend import attend
from polyhead.oracle.rotate import rotate
from polyhead.oracle.tiled import attend_tiled
from polyhead.oracle.trace import trace

__all__ = ["attend", "attend_tiled", "rotate", "trace"]
