"""What is said of a model: its attention layer by layer, its sizes, and where each figure comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from polyhead.spec import AttentionSpec, LayerSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A language model, as its config.json describes it.

    ::

        llama = ph.model("llama-3-8b")
        llama.layers[0].attention.num_kv_heads  # 8
        llama.parameters  # 8030261248
        ph.hf_config("my-model/config.json").layers

    Attributes:
        name: The name to type, lower case with hyphens; for a file, the name of its directory.
        title: The name to read.
        model_type: What transformers calls its kind.
        embed_dim: Width of a token.
        num_layers: Number of ``layers``.
        vocab_size: Number of tokens that it knows.
        max_seq_len: Longest sequence that the config names, in tokens: how many positions there are or, where they are
            relative, how long it was trained or extended to. None: the config names none.
        layers: The stack whose cache grows as it decodes; an encoder's layers where there is nothing else.
        encoder_layers: The encoder's, where there is a decoder too.
        cross_layers: The decoder's attention to the encoder, layer by layer.
        parameters: Number of trained numbers, each shared tensor counted once. Buffers do not count, nor do layers that
            predict further tokens (DeepSeek-V3's).
        active_parameters: How many of them one token goes through: all but the experts that it is not routed to.
        tied_embeddings: Whether the output's table is that of the embeddings.
        config: The fields of the config.json that it was read from.
        sources: For each figure, where it comes from.

    *Differs from* gpt-oss's model card, whose active parameters leave out the table of input embeddings.
    """

    name: str
    title: str
    model_type: str
    embed_dim: int
    num_layers: int
    vocab_size: int
    max_seq_len: int | None
    layers: tuple[LayerSpec, ...] = dataclasses.field(repr=False)
    encoder_layers: tuple[LayerSpec, ...] = dataclasses.field(default=(), repr=False)
    cross_layers: tuple[LayerSpec, ...] = dataclasses.field(default=(), repr=False)
    parameters: int
    active_parameters: int
    tied_embeddings: bool = dataclasses.field(repr=False)
    config: Mapping[str, Any] = dataclasses.field(repr=False, hash=False)
    sources: Mapping[str, str] = dataclasses.field(repr=False, hash=False)

    def __post_init__(self) -> None:
        one_of: dict[LayerSpec, LayerSpec] = {}
        for name in ("layers", "encoder_layers", "cross_layers"):  # equal layers are one object, which `alike` sees
            object.__setattr__(self, name, tuple(one_of.setdefault(layer, layer) for layer in getattr(self, name)))

    def with_attention(self, attention: AttentionSpec) -> Model:
        """Return this model as it would be with another attention in every layer of its stack.

        ::

            ph.model("llama-3-8b").with_attention(spec).parameters

        Args:
            attention: The four choices; the layers' widths and biases stay.

        Returns:
            A model with as many other parameters as before, and the new attention's.

        Raises:
            SpecError: If a layer has something that the new attention cannot have, such as norms of keys.
        """
        return self.with_layers(
            tuple(dataclasses.replace(one, attention=attention, latent_norm=None) for one in self.layers)
        )

    def with_layers(
        self,
        layers: tuple[LayerSpec, ...],
        *,
        encoder_layers: tuple[LayerSpec, ...] | None = None,
        cross_layers: tuple[LayerSpec, ...] | None = None,
    ) -> Model:
        """Return this model as it would be with other layers.

        Args:
            layers: Those of its stack.
            encoder_layers: The encoder's. None: they stay.
            cross_layers: The attention to the encoder. None: it stays.

        Returns:
            A model with as many other parameters as before, and these layers'.
        """
        encoder = self.encoder_layers if encoder_layers is None else encoder_layers
        cross = self.cross_layers if cross_layers is None else cross_layers
        more = _parameters(layers, encoder, cross) - _parameters(self.layers, self.encoder_layers, self.cross_layers)
        counted = "the published model's, with the numbers of another attention in place of its own"
        return dataclasses.replace(
            self,
            layers=layers,
            encoder_layers=encoder,
            cross_layers=cross,
            parameters=self.parameters + more,
            active_parameters=self.active_parameters + more,
            sources={**self.sources, "layers": "given", "parameters": counted},
        )


def alike(layers: Iterable[LayerSpec]) -> dict[LayerSpec, int]:
    """Return each different layer with how often it is there: most of a model's are the same, and one object."""
    objects: dict[int, tuple[LayerSpec, int]] = {}
    for layer in layers:  # by identity first, since telling whether two specs are equal takes longer
        objects[id(layer)] = layer, objects.get(id(layer), (layer, 0))[1] + 1
    counts: dict[LayerSpec, int] = {}
    for layer, times in objects.values():
        counts[layer] = counts.get(layer, 0) + times
    return counts


def _parameters(*stacks: tuple[LayerSpec, ...]) -> int:
    return sum(times * layer.parameters for stack in stacks for layer, times in alike(stack).items())
