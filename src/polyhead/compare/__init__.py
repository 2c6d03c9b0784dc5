"""The fifteen on one input: the textbook's example, one's own arrays, or the heads of a real model."""

from polyhead.compare.comparison import AttentionComparison
from polyhead.compare.differences import Difference
from polyhead.compare.table import Row, Table

__all__ = ["AttentionComparison", "Difference", "Row", "Table"]
