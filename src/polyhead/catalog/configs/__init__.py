"""The config.json of a transformers checkpoint, read into a `Model` and its layers. No torch here."""

from polyhead.catalog.configs.read import MODEL_TYPES, describe, hf_config, layer_specs, read_config

__all__ = ["MODEL_TYPES", "describe", "hf_config", "layer_specs", "read_config"]
