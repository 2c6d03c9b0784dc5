"""What a whole model takes: bytes on each device, and what it computes and moves for a prompt and for a token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from polyhead.catalog import Device, Model
from polyhead.catalog.model import alike
from polyhead.cost.cache import CacheBytes, Engine, cache_bytes
from polyhead.cost.operations import Work, activations, decode_step, prefill, training_step
from polyhead.cost.precision import BITS, Precision, precision_of
from polyhead.errors import SpecError
from polyhead.spec import Latent, LayerSpec
from polyhead.spec.choice import as_int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: Of parameters.
        cache: Of what is kept of all sequences.
        temporary: Of the largest tensor between.
    """

    weights: int
    cache: CacheBytes
    temporary: int

    @property
    def total(self) -> int:
        """Bytes with the ideal cache."""
        return self.weights + self.cache.ideal + self.temporary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long work takes where multiplying and reading overlap: as long as the longer of the two, and what is fixed.

    Attributes:
        computing: Seconds of its operations at the device's rates.
        moving: Seconds of its bytes at the device's rates of reading.
        fixed: Seconds that its layers take whatever their sizes.
    """

    computing: float
    moving: float
    fixed: float = 0.0

    @property
    def total(self) -> float:
        """The longer of the first two, and the third."""
        return max(self.computing, self.moving) + self.fixed

    @property
    def bound(self) -> str:
        """What binds: ``"compute"``, ``"bandwidth"`` or ``"steps"``, which many small layers are."""
        if self.fixed > max(self.computing, self.moving):
            return "steps"
        return "compute" if self.computing > self.moving else "bandwidth"


def memory(
    model: Model,
    length: int,
    *,
    batch: int = 1,
    precision: Precision | str = "bf16",
    devices: int = 1,
    context_length: int = 0,
    engine: Engine | None = None,
) -> Memory:
    """Count the bytes that a model takes on each of some devices, between which its heads and matrices are split.

    A key/value head that more devices need than there are heads lies on several, and a latent row on all of them.

    Args:
        model: The model.
        length: Tokens of each sequence.
        batch: Number of sequences.
        precision: The formats.
        devices: Number of devices.
        context_length: Tokens of the encoder's sequence, where there is one.
        engine: How an engine reserves, see `cache_bytes`.

    Returns:
        The bytes.

    Raises:
        SpecError: If a number is too small, the heads cannot be split so, or a layer that decodes has no cache.
    """
    as_int("devices", devices, at_least=1)
    formats = precision_of(precision)
    kept = CacheBytes(ideal=0, reserved=0, allocated=0)
    for layer, times in alike((*model.layers, *model.cross_layers)).items():
        share = times * _share(layer, devices)
        one = cache_bytes([layer], length, batch=batch, precision=formats, context_length=context_length, engine=engine)
        kept = CacheBytes(
            ideal=kept.ideal + math.ceil(share * one.ideal),
            reserved=kept.reserved + math.ceil(share * one.reserved),
            allocated=None
            if kept.allocated is None or one.allocated is None
            else kept.allocated + math.ceil(share * one.allocated),
        )
    last = _decoded(model, length, batch, formats, context_length)
    return Memory(
        weights=math.ceil(formats.bytes_of("weights", model.parameters) / devices),
        cache=kept,
        temporary=math.ceil(last.temporary / devices),
    )


def prefill_work(
    model: Model, tokens: int, *, batch: int = 1, precision: Precision | str = "bf16", context_length: int = 0
) -> Work:
    """Count what a model does with a prompt; of the vocabulary's scores those of the last token alone.

    Args:
        model: The model.
        tokens: Tokens of each sequence, all new.
        batch: Number of sequences.
        precision: The formats.
        context_length: Tokens of the encoder's sequence, which goes through the encoder too, where there is one.

    Returns:
        The work, all sequences together.
    """

    def of(layer: LayerSpec) -> Work:
        return prefill(layer, tokens, batch=batch, context_length=context_length, precision=precision)

    work = _summed(of, (*model.layers, *model.cross_layers))
    if context_length:
        work += _summed(
            lambda layer: prefill(layer, context_length, batch=batch, precision=precision), model.encoder_layers
        )
    return work + _outside_attention(model, tokens, batch, precision_of(precision))


def training_work(
    model: Model, tokens: int, *, batch: int = 1, precision: Precision | str = "bf16", context_length: int = 0
) -> Work:
    """Count what a model does for a training step, forward and backward; arguments as those of `prefill_work`.

    Of every token the vocabulary's scores are made. Each product takes two more backward, and is executed once more
    there, since of a layer only its input is kept, see `training_memory`.
    """

    def of(layer: LayerSpec) -> Work:
        return training_step(layer, tokens, batch=batch, context_length=context_length, precision=precision)

    work = _summed(of, (*model.layers, *model.cross_layers))
    if context_length:
        work += _summed(
            lambda layer: training_step(layer, context_length, batch=batch, precision=precision), model.encoder_layers
        )
    again = prefill_work(model, tokens, batch=batch, precision=precision, context_length=context_length)
    more = Work(executed=again.executed, attending=again.attending, moved=again.moved, cached=again.cached)
    return work + more + 3 * _outside_attention(model, tokens, batch, precision_of(precision), scored=tokens)


def training_memory(
    model: Model, tokens: int, *, batch: int = 1, precision: Precision | str = "bf16", devices: int = 1
) -> Memory:
    """Count the bytes of a training step with Adam, everything split evenly between devices.

    Weights are those and, for each, a gradient in the same format, two moments in float32 and, where the format is
    narrower, a copy in float32. What is kept for the way back is each layer's input, from which one layer after the
    other is computed again, what that layer makes, and the vocabulary's scores in float32.

    Args:
        model: The model.
        tokens: Tokens of each sequence.
        batch: Number of sequences.
        precision: The formats; ``weights`` and ``activations`` are read.
        devices: Number of devices.

    Returns:
        The bytes; of a cache there are none.
    """
    as_int("tokens", tokens, at_least=1)
    as_int("batch", batch, at_least=1)
    as_int("devices", devices, at_least=1)
    formats = precision_of(precision)
    own = formats.bytes_of("weights", model.parameters)
    copies = model.parameters * (8 + (4 if own < 4 * model.parameters else 0))
    stack = (*model.layers, *model.cross_layers, *model.encoder_layers)
    inside = max(activations(layer, tokens, tokens)[0] for layer in alike(stack)) + tokens * feed_forward_width(model)
    kept = batch * (len(stack) * tokens * model.embed_dim + inside)
    scores = 4 * batch * tokens * model.vocab_size
    return Memory(
        weights=math.ceil((2 * own + copies) / devices),
        cache=CacheBytes(ideal=0, reserved=0, allocated=None),
        temporary=math.ceil((formats.bytes_of("activations", kept) + scores) / devices),
    )


def decode_work(
    model: Model, length: int, *, batch: int = 1, precision: Precision | str = "bf16", context_length: int = 0
) -> Work:
    """Count what a model does for the next token of each sequence, the others being in its caches.

    Args:
        model: The model.
        length: Tokens of each sequence, the new one included.
        batch: Number of sequences.
        precision: The formats.
        context_length: Tokens of the encoder's sequence, where there is one.

    Returns:
        The work, all sequences together.

    Raises:
        SpecError: If a layer has no cache.
    """
    formats = precision_of(precision)
    return _decoded(model, length, batch, formats, context_length) + _outside_attention(model, 1, batch, formats)


def seconds(
    work: Work, device: Device, *, precision: Precision | str = "bf16", devices: int = 1, copies: float = 1.0
) -> Seconds:
    """Return how long work takes: at least, at a device's published rates, or about, at shares that were measured.

    Args:
        work: The work, split evenly between the devices; what they say to each other takes no time here.
        device: The device.
        precision: The formats, of which `multiplied_in` says in which products are made.
        devices: Number of devices.
        copies: On how many of them each part of the cache lies, and is read.

    Returns:
        The seconds.

    Raises:
        SpecError: If the device's bandwidth, or its rate in that format, is not known.
    """
    if device.bandwidth is None:
        raise SpecError(f"{device.title}: its bandwidth is not known; give a device that has one")
    rate, share = device.rate(multiplied_in(precision_of(precision))), device.share
    products, around = work.executed - work.attending, work.moved - work.cached
    return Seconds(
        computing=(products / share("products") + work.attending / share("pairs")) / rate / devices,
        moving=(around / share("weights") + copies * work.cached / share("cache")) / device.bandwidth / devices,
        fixed=work.layers * device.layer_seconds,
    )


def _decoded(model: Model, length: int, batch: int, formats: Precision, context_length: int) -> Work:
    """Count what a token is to the layers that attend."""

    def of(layer: LayerSpec) -> Work:
        return decode_step(layer, length, batch=batch, context_length=context_length, precision=formats)

    return _summed(of, (*model.layers, *model.cross_layers))


def multiplied_in(precision: Precision) -> str:
    """Return the format that products are made in: activations', or weights' where these are the wider ones."""
    is_wider = BITS[precision.weights] > BITS[precision.activations]
    return precision.weights if is_wider else precision.activations


def feed_forward_width(model: Model) -> float:
    """Return how many numbers a token's feed-forward layer makes, between its matrices, on the average of layers."""
    layers = (*model.layers, *model.cross_layers, *model.encoder_layers)
    return max(0, _fed(model)) / len(layers) / model.embed_dim


def _fed(model: Model) -> int:
    """Return the parameters that a token goes through outside attention and the tables of the vocabulary."""
    layers = (*model.layers, *model.cross_layers, *model.encoder_layers)
    attention = sum(times * layer.parameters for layer, times in alike(layers).items())
    return model.active_parameters - attention - _tables(model)


def _tables(model: Model) -> int:
    return (1 if model.tied_embeddings else 2) * model.vocab_size * model.embed_dim


def _share(layer: LayerSpec, devices: int) -> float:
    """Return the part of a layer's cache that each device holds."""
    spec = layer.attention
    if spec.num_heads % devices:
        raise SpecError(f"{spec.num_heads} heads cannot be split between {devices} devices; give a divisor of it")
    if isinstance(spec.storage, Latent):
        return 1.0
    return math.ceil(spec.num_kv_heads / devices) / spec.num_kv_heads


def _summed(of: Callable[[LayerSpec], Work], layers: Iterable[LayerSpec]) -> Work:
    return sum((times * of(layer) for layer, times in alike(layers).items()), Work())


def _outside_attention(model: Model, tokens: int, batch: int, formats: Precision, *, scored: int = 1) -> Work:
    """Count what is no attention: feed-forward layers, and the output's table for the tokens that are ``scored``.

    Of experts a single token reads its own, and more tokens others, at most as many as they are and at most all. A
    token's row of the embeddings is read and not multiplied.
    """
    table, fed = model.vocab_size * model.embed_dim, _fed(model)
    operations = 2.0 * batch * (tokens * fed + scored * table)
    idle = model.parameters - model.active_parameters
    read = fed + min(idle, (batch * tokens - 1) * fed) + table
    return Work(useful=operations, executed=operations, moved=float(formats.bytes_of("weights", read)))
