"""Tiny checkpoints and SmolLM2, as the bridge's own tests make them."""

from tests.hf.conftest import cache as cache, checkpoint as checkpoint, smollm2 as smollm2
