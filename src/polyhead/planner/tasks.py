"""What a model is to do: how much work that is, what memory it takes, and which attention cannot do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from polyhead.catalog import Model
from polyhead.catalog.model import alike
from polyhead.cost import (
    CacheBytes,
    Engine,
    Memory,
    Precision,
    Work,
    decode_work,
    memory,
    prefill_work,
    training_memory,
    training_work,
)
from polyhead.cost.model import feed_forward_width
from polyhead.cost.operations import activations
from polyhead.errors import SpecError, unknown_name
from polyhead.spec import LayerSpec, retention

GATED = 3
"""Matrices of a feed-forward layer at most, each of which is as wide inside: that of LLaMA has three."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        name: What to type.
        what: What is done, in a few words.
        objective: What is made least where nothing else is asked.
        domains: The domains of evidence that tell of its quality, the nearest first.
        written: Tokens that are written one by one, at most.
        strict: Choices of which the first domain's evidence alone counts.
    """

    name: str
    what: str
    objective: str
    domains: tuple[str, ...]
    written: int = 0
    strict: tuple[str, ...] = ()

    def domains_of(self, choice: str) -> tuple[str, ...]:
        """Return the domains whose evidence counts for a choice."""
        return self.domains[:1] if choice in self.strict else self.domains


TASKS = {
    task.name: task
    for task in (
        Task(
            name="generate",
            what="a prompt is read, and the last {written} tokens are written one by one",
            objective="latency",
            domains=("language", "speech"),
            written=256,
        ),
        Task(
            name="retrieve",
            what="a prompt is read, and {written} tokens that answer from it are written",
            objective="latency",
            domains=("retrieval", "language", "speech"),
            written=32,
            strict=("pattern", "weighting"),  # what a window hides or noise drowns, a perplexity does not show
        ),
        Task(
            name="stream",
            what="tokens come one by one without end, and each is answered",
            objective="latency",
            domains=("language", "speech"),
            written=1,
        ),
        Task(
            name="encode",
            what="all tokens are read at once",
            objective="latency",
            domains=("masked language", "language", "speech"),
        ),
        Task(
            name="translate",
            what="an encoder reads, and a decoder writes {written} tokens one by one",
            objective="latency",
            domains=("translation", "language", "speech"),
            written=2**62,
        ),
        Task(
            name="train",
            what="a step of training, forward and backward, with Adam",
            objective="throughput",
            domains=("language", "speech"),
        ),
    )
}


def task_of(name: str) -> Task:
    """Look a task up; raises UnknownNameError if there is none of that name."""
    if name not in TASKS:
        raise unknown_name("task", name, list(TASKS))
    return TASKS[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """How much there is to do.

    Attributes:
        task: What.
        context: Tokens of each sequence, in all; of a translation those of either side.
        batch: Number of sequences.
        precision: The formats.
        devices: Number of devices.
        asked: Tokens that are to be written. None: as many as the task writes.
        engine: How a serving engine reserves a cache. None: as `Engine` does by itself.
    """

    task: Task
    context: int
    batch: int
    precision: Precision
    devices: int = 1
    asked: int | None = None
    engine: Engine | None = None

    @property
    def written(self) -> int:
        """Tokens that are written one by one, of those tasks that write any."""
        most = self.task.written if self.asked is None or not self.task.written else self.asked
        return min(most, self.context if self.task.name in {"translate", "stream"} else self.context - 1)

    @property
    def what(self) -> str:
        """What is done, to read."""
        return self.task.what.format(written=f"{self.written:,}")

    @property
    def encoded(self) -> int:
        """Tokens that an encoder reads."""
        return self.context if self.task.name == "translate" else 0


def prompt_work(model: Model, load: Load) -> Work | None:
    """Return the work of what is done at once: of the prompt, or of the training step. None: there is nothing."""
    common = {"batch": load.batch, "precision": load.precision}
    if load.task.name == "stream":
        return None
    if load.task.name == "train":
        return training_work(model, load.context, **common, context_length=_source(model, load))  # type: ignore[arg-type]
    tokens = 1 if load.task.name == "translate" else load.context - load.written
    return prefill_work(model, tokens, **common, context_length=_source(model, load))  # type: ignore[arg-type]


def token_work(model: Model, load: Load) -> Work | None:
    """Return the work of the last token that is written, the longest of all. None: none is written."""
    if not load.written:
        return None
    return decode_work(
        model, load.context, batch=load.batch, precision=load.precision, context_length=_source(model, load)
    )


def memory_of(model: Model, load: Load) -> Memory:
    """Return the bytes on each device, the prompt being read piece by piece."""
    if load.task.name == "train":
        return training_memory(model, load.context, batch=load.batch, precision=load.precision, devices=load.devices)
    if load.task.name == "encode":
        weights = load.precision.bytes_of("weights", model.parameters)
        largest = max(activations(layer, load.context, load.context)[1] for layer in alike(model.layers))
        made = max(largest, load.context * feed_forward_width(model) / GATED)
        temporary = load.precision.bytes_of("activations", load.batch * made)
        return Memory(
            weights=-(-weights // load.devices),
            cache=CacheBytes(ideal=0, reserved=0, allocated=None),
            temporary=-(-temporary // load.devices),
        )
    return memory(
        model,
        load.context,
        batch=load.batch,
        precision=load.precision,
        devices=load.devices,
        context_length=_source(model, load),
        engine=load.engine,
    )


def cannot(model: Model, load: Load) -> str | None:
    """Return why a model's attention cannot do a task, or None."""
    layers = (*model.layers, *model.cross_layers)
    if load.task.name == "translate" and not model.cross_layers:
        return "nothing in it attends to another sequence; give an encoder and a decoder, as t5-base is"
    if load.task.name in {"train", "encode"}:
        return None
    try:
        kept = [retention(layer.attention, layer.source) for layer in alike(layers)]
    except SpecError:
        return "its queries see later tokens, which are not there yet when one token after the other is written"
    if load.task.name == "stream" and any(one.kind == "growing" for one in kept):
        return "its cache grows with every token"
    if load.task.name == "stream" and all(one.kind == "rolling" for one in kept):
        back = reach(model.layers)
        return (
            None if back >= load.context else f"what lies more than {back:,} tokens back is out of every layer's reach"
        )
    if load.task.name == "retrieve" and all(one.kind == "rolling" for one in kept):
        seen = max(int(one.reach.size()) for one in kept)
        return (
            None if seen >= load.context else f"no layer sees more than {seen:,} tokens, so none can look further back"
        )
    return None


def reach(layers: Sequence[LayerSpec]) -> int:
    """Return how far back a stack of windows carries anything: each layer adds its own."""
    return sum(layer.attention.pattern.reach.left or 0 for layer in layers)


def _source(model: Model, load: Load) -> int:
    """Return the tokens of the encoder's sequence, where there is an encoder."""
    return load.context if model.cross_layers else 0
