"""A plan in sentences: the answer, what binds, and of each change what it buys, costs in quality, and takes to have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from polyhead.cost import BITS, Seconds
from polyhead.errors import SpecError
from polyhead.planner.asked import most
from polyhead.planner.evidence import CHOICES, CONVERSIONS
from polyhead.planner.options import NAMES
from polyhead.planner.plan import Plan, Stack
from polyhead.planner.tasks import memory_of
from polyhead.spec import Latent

GIB = 2**30
MOST_DEVICES = 1024
BINDS = {
    "compute": "multiplying",
    "bandwidth": "reading memory",
    "steps": "the steps of each layer, whatever its size",
}


def sentences(plan: Plan) -> Iterator[str]:
    """Yield what a plan says, a sentence or two at a time, the answer first."""
    yield _answer(plan)
    yield from _without_training(plan)
    if plan.own is not None:
        if plan.own.over and plan.best is not None and (ways := _ways(plan, plan.own)):
            yield f"{plan.own.name} fits with {', or with '.join(ways)}."
        yield from _binding(plan, plan.own)
        yield from _devices(plan)
    elif plan.best is not None:
        yield f"As it is, {_base(plan)} cannot do it: {next(iter(plan.refused.values()))}."
    yield from plan.notes


def changes(plan: Plan) -> Iterator[str]:
    """Yield what each change of one choice buys, costs in quality and takes to have, choice by choice."""
    found = [stack for stack in (*plan.stacks, *plan.dropped) if len(stack.variant.changed) == 1]
    for choice in CHOICES:
        for stack in found:
            if stack.variant.changed == (choice,):
                yield _change(plan, stack, choice)


def _answer(plan: Plan) -> str:
    best, own = plan.best, plan.own
    if best is None:
        return nearest(plan)
    if best is own and not plan.is_trained:
        return f"Take {best.name}, the reference: nothing else is worth its change."
    if best is own and best.way.needs != "nothing":
        how = "; ".join(best.way.how) or "training anew"
        return f"Keep {best.name}, trained on {plan.model.max_seq_len:,} tokens; {plan.load.context:,} take {how}."
    if best is own:
        return f"Keep {best.name}: nothing else is worth its change."
    taken = {"conversion": ", by a conversion", "retraining": ", trained anew"}.get(best.way.needs, "")
    if own is None:
        return f"Take {best.name}{taken}{_unmeasured(best)}."
    if own.over:
        return f"Take {best.name}{taken}: as it is, {own.name} is {_gib(own.over)} too large."
    return f"Take {best.name}{taken}, in place of {own.name}: {_bought(plan, best, own)}{_why(best, own)}."


def _why(best: Stack, own: Stack) -> str:
    """Return the evidence of what changed that the trained model's own was held against."""
    changed = [(choice, best.variant.kinds[choice]) for choice in best.variant.changed]
    known = {choice for choice, _ in own.way.quality}
    found = [best.way.quality.get(option) for option in changed if option[0] in known]
    return "".join(f"; quality: {evidence}" for evidence in found if evidence is not None)


def _unmeasured(stack: Stack) -> str:
    unknown = [NAMES[option] for option, found in stack.way.quality.items() if found is None or found.loss is None]
    return f", of which nobody measured what is lost ({', '.join(unknown)})" if unknown else ""


def _without_training(plan: Plan) -> Iterator[str]:
    """Say what there is for those who will not train anew."""
    if plan.best is None or plan.best.way.needs != "retraining":
        return
    said = {"With no more than a conversion": ("conversion", "nothing"), "With no training at all": ("nothing",)}
    best = {text: next((one for one in plan.stacks if one.way.needs in needs), None) for text, needs in said.items()}
    for number, (text, stack) in enumerate(best.items()):
        if stack is not None and stack not in list(best.values())[number + 1 :]:
            yield f"{text} the best is {stack.name}{_unmeasured(stack)}."


def nearest(plan: Plan) -> str:
    """Return, of a plan in which nothing fits, what comes nearest and what would let it fit."""
    if not plan.dropped:
        return f"Nothing can do this: {next(iter(plan.refused.values()))}."
    stack, least = plan.own or plan.dropped[0], plan.dropped[0]
    said = f"Nothing fits. {stack.name} is {_gib(stack.over)} too large for {plan.device.title}"
    if least is not stack:
        said += f", and the least of all, {least.name}, {_gib(least.over)}"
    ways = _ways(plan, stack)
    if not ways:
        return f"{said}. No shorter context, smaller batch, narrower format or number of devices changes that."
    return f"{said}. {stack.name} fits with {', or with '.join(ways)}."


def _ways(plan: Plan, stack: Stack) -> list[str]:
    """Return what else would let a stack fit that is too large."""
    every = (_shorter(plan, stack), _fewer(plan, stack), _narrower(plan, stack), _more(plan, stack))
    return [way for way in every if way is not None]


def _fits(plan: Plan, stack: Stack, **changes: object) -> bool:
    load = dataclasses.replace(plan.load, **changes)  # type: ignore[arg-type]
    try:
        return memory_of(stack.variant.model, load).total <= plan.device.memory
    except SpecError:  # heads that are not split so
        return False


def _shorter(plan: Plan, stack: Stack) -> str | None:
    longest = most(lambda tokens: _fits(plan, stack, context=tokens), 1, plan.load.context)
    return f"a context of {longest:,} tokens" if longest else None


def _fewer(plan: Plan, stack: Stack) -> str | None:
    batch = most(lambda count: _fits(plan, stack, batch=count), 1, plan.load.batch)
    return f"a batch of {batch}" if batch else None


def _narrower(plan: Plan, stack: Stack) -> str | None:
    if plan.load.task.name == "train":  # whose weights and moments need their digits
        return None
    for name in sorted(BITS, key=lambda one: -BITS[one]):
        narrower = {
            part: name for part in ("weights", "cache") if BITS[name] < BITS[getattr(plan.load.precision, part)]
        }
        for parts in ({"weights": narrower["weights"]} if "weights" in narrower else {}, narrower):
            if parts and _fits(plan, stack, precision=dataclasses.replace(plan.load.precision, **parts)):
                return f"precision {','.join(f'{part}={name}' for part in parts)}"
    return None


def _more(plan: Plan, stack: Stack) -> str | None:
    counts = range(plan.load.devices + 1, MOST_DEVICES + 1)
    heads = {layer.attention.num_heads for layer in stack.variant.model.layers}
    for count in counts:
        is_split = plan.load.task.name == "train" or all(number % count == 0 for number in heads)
        if is_split and _fits(plan, stack, devices=count):
            return f"{count} devices"
    return None


def _binding(plan: Plan, own: Stack) -> Iterator[str]:
    memory, total = own.memory, own.memory.total
    parts = f"weights {_gib(memory.weights)}, cache {_gib(memory.cache.ideal)}, the rest {_gib(memory.temporary)}"
    if plan.load.task.name == "train":
        kept = f"what is kept for the way back {_gib(memory.temporary)}"
        parts = f"weights, gradients and Adam's {_gib(memory.weights)}, {kept}"
    each = "" if plan.load.devices == 1 else " on each"
    yield (
        f"{own.name} takes {_gib(total)} of {_gib(plan.device.memory)}{each}: {parts}. "
        + ("Capacity binds." if own.over else f"{100 * total / plan.device.memory:.0f} % of capacity.")
    )
    if memory.cache.reserved > memory.cache.ideal:
        room = memory.cache.reserved - memory.cache.ideal
        if room > 0.01 * memory.cache.ideal:
            yield f"An engine that keeps windows whole, in pages, reserves {_gib(memory.cache.reserved)} for the cache."
    if own.prompt is not None:
        yield f"{_at_once(plan).capitalize()} takes {_time(own.prompt.total)}, bound by {BINDS[own.prompt.bound]}."
    if own.token is not None:
        takes = f"A token takes {_time(own.token.total)}, bound by {BINDS[own.token.bound]}"
        yield f"{takes}{_split(plan, own, own.token)}."


def _at_once(plan: Plan) -> str:
    """Return what is done at once, to read."""
    return {"train": "a step of training", "encode": "one pass"}.get(plan.load.task.name, "the prompt")


def _split(plan: Plan, own: Stack, token: Seconds) -> str:
    """Say of a token that is bound by reading how much of it the cache is."""
    if token.bound != "bandwidth" or plan.device.bandwidth is None:
        return ""
    cache = own.memory.cache.ideal / plan.device.bandwidth / plan.device.share("cache")
    return f": the cache {_time(cache)}, weights and the rest {_time(max(0.0, token.moving - cache))}"


def _devices(plan: Plan) -> Iterator[str]:
    count = plan.load.devices
    if count == 1:
        return
    if plan.load.task.name == "train":
        yield f"All of it is split evenly between {count} devices. What they say to each other takes no time here."
        return
    spec = plan.model.layers[0].attention
    if isinstance(spec.storage, Latent):
        shared = "the latent is no head's, and lies on all of them"
    elif spec.num_kv_heads % count == 0:
        shared = f"each has {spec.num_kv_heads // count} of {spec.num_kv_heads} key/value heads"
    else:
        shared = f"there are {spec.num_kv_heads} key/value heads, so some lie on several"
    yield (
        f"Weights and {spec.num_heads} heads are split between {count} devices; {shared}. "
        "What the devices say to each other takes no time here."
    )


def _change(plan: Plan, stack: Stack, choice: str) -> str:
    kind = stack.variant.kinds[choice]
    title = stack.variant.names[choice] if choice == "storage" else NAMES[choice, kind]
    buys = (
        f"takes {_gib(stack.memory.total)}, {_gib(stack.over)} too much"
        if stack.over
        else _bought(plan, stack, plan.own)
    )
    needs = {"nothing": "needs nothing", "conversion": "needs a conversion", "retraining": "needs training anew"}
    taken = needs.get(stack.way.needs, "")
    recipe = CONVERSIONS.get((choice, kind)) if stack.way.needs == "retraining" and plan.is_trained else None
    how = f": {'; '.join(stack.way.how)}" if stack.way.how else ""
    how += f", though there is a recipe: {recipe}" if recipe and choice == "storage" and kind == "mla" else ""
    parts = [buys, _quality(stack, choice, kind), f"{taken}{how}" if taken else ""]
    return f"{title} ({choice}): {'; '.join(part for part in parts if part)}."


def _quality(stack: Stack, choice: str, kind: str) -> str:
    if (choice, kind) not in stack.way.quality:
        return "the reference in quality"
    evidence = stack.way.quality[choice, kind]
    if evidence is None:
        return "its quality is not measured"
    against = " against MHA" if choice == "storage" else ""
    return f"quality{against}: {evidence}"


def _bought(plan: Plan, stack: Stack, own: Stack | None) -> str:
    if own is None:
        return f"takes {_gib(stack.memory.total)}"
    parts = []
    for what, of in _FIGURES.items():
        before, after = of(own), of(stack)
        if before is None or after is None or round(before, 12) == round(after, 12):
            continue
        show = _gib if what in {"cache", "memory"} else _time
        if abs(after - before) > 0.01 * max(before, after):
            named = _at_once(plan).removeprefix("the ") if what == "prompt" else what
            parts.append(f"{named} {show(before)} to {show(after)}")
    if own.batch != stack.batch:
        parts.append(f"sequences at once {own.batch} to {stack.batch}")
    return ", ".join(parts) or "costs the same"


_FIGURES: dict[str, Callable[[Stack], float | None]] = {
    "cache": lambda stack: stack.memory.cache.ideal or None,
    "memory": lambda stack: stack.memory.total,
    "prompt": lambda stack: None if stack.prompt is None else stack.prompt.total,
    "token": lambda stack: None if stack.token is None else stack.token.total,
}


def _base(plan: Plan) -> str:
    return plan.model.title if plan.is_trained else "multi-head attention with RoPE"


def _gib(count: float) -> str:
    if count >= GIB:
        return f"{count / GIB:,.1f} GiB"
    if not count:
        return "0 B"
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
