"""The model types that are adopted: what their modules are, where their tensors lie, how they are called."""

from collections.abc import Mapping

from polyhead.hf.families import differential, fused, latent, rotary
from polyhead.hf.families.base import Adopted, Family, adopted_class, padding_mask, stand_in

FAMILIES: Mapping[str, Family] = {
    **rotary.FAMILIES,
    **fused.FAMILIES,
    **latent.FAMILIES,
    **differential.FAMILIES,
}
"""Each by its ``model_type``."""

__all__ = ["FAMILIES", "Adopted", "Family", "adopted_class", "padding_mask", "stand_in"]
