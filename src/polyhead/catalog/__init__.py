"""The encyclopaedia: the fifteen mechanisms and what models are made of, as data with sources. No torch here."""

from polyhead.catalog.configs import hf_config
from polyhead.catalog.device import Device
from polyhead.catalog.devices import device, devices
from polyhead.catalog.example import EXAMPLE, Example
from polyhead.catalog.mechanism import Mechanism
from polyhead.catalog.mechanisms import mechanism, mechanisms
from polyhead.catalog.model import Model
from polyhead.catalog.models import model, models
from polyhead.catalog.settings import TEXTBOOK, Settings

__all__ = [
    "EXAMPLE",
    "TEXTBOOK",
    "Device",
    "Example",
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
]
