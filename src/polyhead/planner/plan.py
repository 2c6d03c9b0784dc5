"""The plan: every stack that a model could have, priced on a device, what does not fit dropped, the rest ranked."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from polyhead.catalog import Device, Model
from polyhead.cost import Engine, Memory, Precision, Seconds, cache_bytes, seconds
from polyhead.errors import SpecError
from polyhead.planner.asked import (
    count_of,
    default_task,
    device_of,
    is_timed,
    model_of,
    most,
    objective_of,
    precision_for,
)
from polyhead.planner.evidence import CHOICES
from polyhead.planner.options import Variant, kinds, reference, variants
from polyhead.planner.ranking import Preferences, Way, best_way, needs_extension
from polyhead.planner.tasks import Load, cannot, memory_of, prompt_work, task_of, token_work

LARGEST_BATCH = 1024
"""Sequences at once that throughput is looked at with, at most."""

WINDOW = 4096
"""Tokens that a window holds where nothing else is asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """A model with some attention, priced.

    Attributes:
        variant: The model, and which of its four choices are changed.
        batch: Sequences at once that it is priced with.
        memory: Bytes on each device.
        capacity: Bytes that a device has.
        prompt: How long the prompt takes, or the step of training. None: there is none, or it is not known.
        token: How long the last token takes. None: none is written, or it is not known.
        written: Tokens written.
        way: What it takes to have it, and what was published of its quality.
        objective: What is made least: seconds of a request, seconds of a sequence, or bytes.
        score: The objective times what the changes must be worth; the least is the best.
    """

    variant: Variant
    batch: int
    memory: Memory
    capacity: int
    prompt: Seconds | None
    token: Seconds | None
    written: int
    way: Way
    objective: float
    score: float

    @property
    def name(self) -> str:
        """Its four choices, to read."""
        return self.variant.name

    @property
    def over(self) -> int:
        """Bytes by which it does not fit on a device; 0 if it fits."""
        return max(0, self.memory.total - self.capacity)

    @property
    def request(self) -> float | None:
        """Seconds of the prompt and all tokens written, each as slow as the last. None: not known."""
        return _request(self.prompt, self.token, self.written)


def _request(prompt: Seconds | None, token: Seconds | None, written: int) -> float | None:
    if prompt is None and token is None:
        return None
    return (0.0 if prompt is None else prompt.total) + (0.0 if token is None else written * token.total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which attention, for a model, a context and a device.

    Attributes:
        model: The model.
        device: The device.
        load: What is to be done.
        objective: What is made least: ``"latency"``, ``"throughput"`` or ``"memory"``.
        is_trained: Whether the model's weights are there, so that a change takes a conversion or training anew.
        prefer: What a change must be worth.
        own: The model as it is; without trained weights the reference, multi-head attention with RoPE.
        stacks: What fits, the best first.
        dropped: What does not fit, that which comes nearest first.
        refused: What cannot do the task, and why, by its name.
        notes: What is to be known besides.
    """

    model: Model
    device: Device
    load: Load
    objective: str
    is_trained: bool
    prefer: Preferences
    own: Stack | None
    stacks: tuple[Stack, ...]
    dropped: tuple[Stack, ...]
    refused: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Stack | None:
        """The best that fits, or None."""
        return self.stacks[0] if self.stacks else None

    def ranked(self, count: int) -> list[Stack]:
        """Return the best that fit, of those that differ in position alone the first: position moves few bytes."""
        seen: dict[tuple[str, ...], Stack] = {}
        for stack in self.stacks:
            kinds = tuple(kind for choice, kind in stack.variant.kinds.items() if choice != "position")
            seen.setdefault(kinds, stack)
        return list(seen.values())[:count]

    @property
    def cache_bytes_per_token(self) -> int | None:
        """Bytes that the model's own layers keep of a first token, all together. None: they keep none."""
        try:
            return cache_bytes(self.model.layers, 1, precision=self.load.precision).ideal
        except SpecError:
            return None

    def __str__(self) -> str:
        from polyhead.planner.words import changes, sentences

        return "\n".join((*sentences(self), *changes(self)))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from polyhead.planner.notebook import of_plan

        return of_plan(self)


def plan(
    model: Model | str | os.PathLike[str],
    *,
    context: int | None = None,
    device: Device | str | os.PathLike[str] | None = None,
    batch: int = 1,
    devices: int = 1,
    task: str | None = None,
    written: int | None = None,
    precision: Precision | str | None = None,
    optimise: str | None = None,
    from_scratch: bool = False,
    window: int = WINDOW,
    engine: Engine | None = None,
    prefer: Preferences | None = None,
) -> Plan:
    """Price every stack of attention that a model could have, drop what does not fit, and rank the rest.

    A stack's score is what is made least, times a factor for each choice that it changes, for what was published of its
    quality, and for what it takes to have it; see `Preferences`. Costs are those of `polyhead.cost`, so a time is the
    least that it could be, or on a device that was calibrated about what it is.

    ::

        print(ph.plan("llama-3-8b", context=131_072, device="a100-80"))

    Args:
        model: The model, its name in the catalogue, or the path of a config.json.
        context: Tokens of each sequence. None: the longest that the model's config names.
        device: The device, its name, or a file that describes it. None: this machine, of which only the memory is known
            unless it was calibrated.
        batch: Number of sequences; for throughput as many as fit are looked at, and these at least.
        devices: Number of devices between which heads and matrices are split.
        task: ``"generate"``, ``"retrieve"``, ``"stream"``, ``"encode"``, ``"translate"`` or ``"train"``. None: what the
            model is for.
        written: Tokens of the context that are written one by one. None: as the task has it.
        precision: The formats. None: bf16, or float32 where that is all that the device multiplies.
        optimise: ``"latency"``, ``"throughput"`` or ``"memory"``. None: latency, of training throughput, and memory
            where the device's rates are not known.
        from_scratch: Whether the model is still to be trained, so that the reference is multi-head attention with RoPE
            and no change takes a conversion. Training always is.
        window: Tokens that a window holds, where one is tried.
        engine: How a serving engine reserves a cache.
        prefer: What a change must be worth.

    Returns:
        The plan.

    Raises:
        SpecError: If a number is too small, heads cannot be split so, or what is asked to be made least is not known.
        UnknownNameError: If a name is none.
    """
    begun = planning(
        model,
        context=context,
        device=device,
        batch=batch,
        devices=devices,
        task=task,
        written=written,
        precision=precision,
        optimise=optimise,
        from_scratch=from_scratch,
        window=window,
        engine=engine,
        prefer=prefer,
    )
    return begun.plan()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planning:
    """What stays the same for all stacks of a plan.

    Attributes:
        model: The model.
        base: The model that changes are made to: itself, or the reference of its sizes where nothing is trained yet.
        is_trained: Whether it is trained.
        load: What is to be done.
        device: The device.
        objective: What is made least.
        prefer: What a change must be worth.
        window: Tokens that a window holds.
        notes: What is to be known besides.
    """

    model: Model
    base: Model
    is_trained: bool
    load: Load
    device: Device
    objective: str
    prefer: Preferences
    window: int
    notes: tuple[str, ...]

    @functools.cached_property
    def base_kinds(self) -> dict[str, str]:
        """What stands in the four places of the base."""
        return kinds(self.base)

    def variants(self) -> Iterator[Variant]:
        """Yield the base, then it with other attention; of one that is to be trained the model's own as well."""
        window = self.window if self.window < self.load.context else None
        yield from variants(self.base, window=window, sees_later=self.load.task.name == "encode")
        if not self.is_trained and self.model.layers != self.base.layers:
            before, after = self.base_kinds, kinds(self.model)
            yield Variant(model=self.model, changed=tuple(one for one in CHOICES if before[one] != after[one]))

    def plan(self) -> Plan:
        """Price all stacks, and rank them."""
        fitting: list[Stack] = []
        dropped: list[Stack] = []
        refused: dict[str, str] = {}
        own: Stack | None = None
        for variant in self.variants():
            if (why := cannot(variant.model, self.load)) is not None:
                refused[variant.name] = why
                continue
            try:
                stack = self.priced(variant)
            except SpecError as error:  # its heads cannot be split between so many devices
                if not variant.changed:
                    raise
                refused[variant.name] = str(error)
                continue
            own = own or (None if variant.changed else stack)
            (dropped if stack.over else fitting).append(stack)
        return Plan(
            model=self.model,
            device=self.device,
            load=self.load,
            objective=self.objective,
            is_trained=self.is_trained,
            prefer=self.prefer,
            own=own,
            stacks=tuple(sorted(fitting, key=lambda stack: stack.score)),
            dropped=tuple(sorted(dropped, key=lambda stack: stack.over)),
            refused=refused,
            notes=self.notes,
        )

    def priced(self, variant: Variant) -> Stack:
        """Price a variant, and say what it must be worth."""
        load = self._filled(variant) if self.objective == "throughput" else self.load
        memory = memory_of(variant.model, load)
        prompt, token = self._seconds(variant.model, load, memory)
        extends = needs_extension(variant, load.context, self.model.max_seq_len) if self.is_trained else None
        way = best_way(variant, self.base_kinds, load.task, self.prefer, extends=extends)
        request = _request(prompt, token, load.written)
        objective = float(memory.total)
        if self.objective != "memory" and request is not None:
            objective = request / (load.batch if self.objective == "throughput" else 1)
        return Stack(
            variant=variant,
            batch=load.batch,
            memory=memory,
            capacity=self.device.memory,
            prompt=prompt,
            token=token,
            written=load.written,
            way=way,
            objective=objective,
            score=objective * way.factor * self.prefer.each_choice ** len(variant.changed),
        )

    def _filled(self, variant: Variant) -> Load:
        """Return the load with as many sequences as fit, at least those asked for."""

        def fits(batch: int) -> bool:
            load = dataclasses.replace(self.load, batch=batch)
            return memory_of(variant.model, load).total <= self.device.memory

        return dataclasses.replace(self.load, batch=most(fits, self.load.batch, LARGEST_BATCH) or self.load.batch)

    def _seconds(self, model: Model, load: Load, memory: Memory) -> tuple[Seconds | None, Seconds | None]:
        if not is_timed(load.precision, self.device):
            return None, None
        alone = memory_of(model, dataclasses.replace(load, devices=1)) if load.devices > 1 else memory
        copies = load.devices * memory.cache.ideal / alone.cache.ideal if alone.cache.ideal else 1.0
        works = (prompt_work(model, load), token_work(model, load))
        options = {"precision": load.precision, "devices": load.devices, "copies": copies}
        first, second = (None if work is None else seconds(work, self.device, **options) for work in works)  # type: ignore[arg-type]
        return first, second


def planning(
    model: Model | str | os.PathLike[str],
    *,
    context: int | None = None,
    device: Device | str | os.PathLike[str] | None = None,
    batch: int = 1,
    devices: int = 1,
    task: str | None = None,
    written: int | None = None,
    precision: Precision | str | None = None,
    optimise: str | None = None,
    from_scratch: bool = False,
    window: int = WINDOW,
    engine: Engine | None = None,
    prefer: Preferences | None = None,
) -> Planning:
    """Look up what names name, and check the rest; arguments and errors are those of `plan`."""
    found, where = model_of(model), device_of(device)
    longest = found.max_seq_len if context is None else context
    if longest is None:
        raise SpecError(f"the config of {found.name} names no longest sequence; give context=")
    load = Load(
        task=task_of(default_task(found) if task is None else task),
        context=count_of("context", longest),
        batch=count_of("batch", batch),
        devices=count_of("devices", devices),
        asked=None if written is None else count_of("written", written),
        precision=precision_for(precision, where),
        engine=engine,
    )
    objective, notes = objective_of(optimise, load, where)
    is_trained = not (from_scratch or load.task.name == "train")
    return Planning(
        model=found,
        base=found if is_trained else reference(found),
        is_trained=is_trained,
        load=load,
        device=where,
        objective=objective,
        prefer=prefer or Preferences(),
        window=count_of("window", window),
        notes=notes,
    )
