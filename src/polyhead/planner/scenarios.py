"""The textbook's eight deployments as questions to the planner, and its answers beside the book's."""

from __future__ import annotations

import dataclasses
from typing import Any

from polyhead.planner.evidence import CHOICES, Option
from polyhead.planner.options import NAMES
from polyhead.planner.plan import Plan, Stack, plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """A deployment.

    Attributes:
        name: What the textbook calls it.
        question: What the planner is asked, as arguments of `plan`.
        book: What the textbook chooses, where it says something; of the pattern any of the kinds named.
        why: Its reason.
    """

    name: str
    question: dict[str, Any]
    book: dict[str, tuple[str, ...]]
    why: str


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="training an LLM from scratch",
        question={"model": "llama-3-8b", "context": 8192, "device": "h100", "devices": 8, "task": "train"},
        book={"storage": ("mha",), "position": ("rope",), "weighting": ("softmax",)},
        why="quality; length generalisation",
    ),
    Scenario(
        name="fast inference, long context",
        question={"model": "llama-3.1-8b", "context": 131_072, "device": "a100-80"},
        book={"storage": ("gqa",), "position": ("rope",), "weighting": ("softmax",)},
        why="a small cache at little loss",
    ),
    Scenario(
        name="extreme memory constraint",
        question={
            "model": "llama-3-8b",
            "context": 32_768,
            "device": "l4",
            "optimise": "memory",
            "from_scratch": True,
        },
        book={"storage": ("mla",), "position": ("rope",), "weighting": ("softmax",)},
        why="the smallest cache",
    ),
    Scenario(
        name="very long documents",
        question={"model": "llama-3.1-8b", "context": 131_072, "device": "rtx-4090"},
        book={
            "storage": ("gqa",),
            "position": ("rope",),
            "pattern": ("window", "window-first", "mostly-window"),
            "weighting": ("softmax",),
        },
        why="O(N·w)",
    ),
    Scenario(
        name="autoregressive generation",
        question={"model": "llama-3-8b", "context": 8192, "device": "a100-80"},
        book={"storage": ("gqa",), "position": ("rope",), "pattern": ("causal",), "weighting": ("softmax",)},
        why="what LLaMA 3 and Qwen-2 have",
    ),
    Scenario(
        name="encoder–decoder (translation)",
        question={"model": "t5-base", "context": 512, "device": "l4", "task": "translate", "from_scratch": True},
        book={"storage": ("mha",), "position": ("rope",), "weighting": ("softmax",)},
        why="the decoder reads the encoder",
    ),
    Scenario(
        name="long-context retrieval",
        question={"model": "llama-3.1-8b", "context": 131_072, "device": "a100-80", "task": "retrieve"},
        book={"storage": ("gqa",), "position": ("rope",), "weighting": ("differential",)},
        why="noise cancelled, recall up",
    ),
    Scenario(
        name="linear-time processing",
        question={"model": "llama-3-8b", "context": 2**20, "device": "a100-80", "task": "stream"},
        book={"weighting": ("linear",)},
        why="no attention matrix at all",
    ),
)
"""The questions are this planner's: the textbook names no sizes. A small GPU stands for a tight memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the planner says to a scenario.

    Attributes:
        scenario: The scenario.
        plan: The plan.
        agrees: Whether the best stack has what the textbook chooses.
        reason: What decided, in numbers.
    """

    scenario: Scenario
    plan: Plan
    agrees: bool
    reason: str


def answers() -> list[Answer]:
    """Ask the planner each scenario's question."""
    return [_answer(scenario) for scenario in SCENARIOS]


def _answer(scenario: Scenario) -> Answer:
    found = plan(**scenario.question)
    best, wanted = found.best, _wanted(found, scenario)
    agrees = best is not None and _is_as_wanted(best, scenario)
    return Answer(scenario=scenario, plan=found, agrees=agrees, reason=_reason(found, best, wanted))


def _is_as_wanted(stack: Stack, scenario: Scenario) -> bool:
    return all(stack.variant.kinds[choice] in kinds for choice, kinds in scenario.book.items())


def _wanted(found: Plan, scenario: Scenario) -> Stack | None:
    """Return the best of the stacks that have what the textbook chooses."""
    return next((stack for stack in (*found.stacks, *found.dropped) if _is_as_wanted(stack, scenario)), None)


def _reason(found: Plan, best: Stack | None, wanted: Stack | None) -> str:
    """Say why the best is the best: against the next that differs in more than position, or against the book's."""
    if best is None:
        return "nothing fits"
    ranked = found.ranked(2)
    other = wanted if wanted is not None and wanted is not best else ranked[1] if len(ranked) > 1 else None
    said = []
    if found.own is None:
        said.append(f"as it is: {next(iter(found.refused.values()))}")
    elif found.own.over:
        said.append(f"{found.own.name} is {found.own.over / 2**30:.1f} GiB too large")
    if other is not None:
        said.append(f"{_weighed(found, best)}; {other.name}: {_weighed(found, other)}")
    return "; ".join(said)


def _weighed(found: Plan, stack: Stack) -> str:
    """Return a stack's objective times what it must be worth."""
    worth = stack.score / stack.objective
    what = f"{stack.objective / 2**30:.1f} GiB" if found.objective == "memory" else f"{stack.objective:.3g} s"
    return f"{what} × {worth:.3g} = {stack.score / (2**30 if found.objective == 'memory' else 1):.3g}"


def book_text(scenario: Scenario) -> str:
    """Return what the textbook chooses, to read."""
    parts = []
    for choice in CHOICES:
        kinds = scenario.book.get(choice, ())
        option: Option = (choice, kinds[0]) if kinds else ("", "")
        parts += [NAMES[option]] if kinds else []
    return " + ".join(parts)


def rows() -> list[dict[str, Any]]:
    """Return a row for each scenario: what was asked, the planner's stack, the textbook's, and what decided."""
    return [
        {
            "name": answer.scenario.name,
            "asked": _asked(answer.plan),
            "planned": "nothing" if answer.plan.best is None else answer.plan.best.name,
            "book": book_text(answer.scenario),
            "book_why": answer.scenario.why,
            "agrees": answer.agrees,
            "reason": answer.reason,
        }
        for answer in answers()
    ]


def _asked(found: Plan) -> str:
    trained = "" if found.is_trained else " to be trained"
    count = "" if found.load.devices == 1 else f"{found.load.devices} × "
    task, where = found.load.task.name, f"{count}{found.device.name}"
    return f"{found.model.name}{trained}, {task}, {found.load.context:,} tokens, {where}, for {found.objective}"
