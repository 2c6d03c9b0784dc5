"""The encyclopaedia: the fifteen mechanisms and what models are made of, as data with sources. No torch here."""

from polyhead.catalog.example import EXAMPLE, Example
from polyhead.catalog.mechanism import Mechanism
from polyhead.catalog.mechanisms import mechanism, mechanisms
from polyhead.catalog.settings import TEXTBOOK, Settings

__all__ = ["EXAMPLE", "TEXTBOOK", "Example", "Mechanism", "Settings", "mechanism", "mechanisms"]
