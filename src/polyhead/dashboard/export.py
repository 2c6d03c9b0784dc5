"""The page as one file that needs no server: what is asked for the state that it shows, answered beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from polyhead.catalog import mechanisms
from polyhead.dashboard.answers import HTML, QUESTIONS, Dashboard, Question, told
from polyhead.dashboard.requests import ExportRequest, State
from polyhead.dashboard.state import defaults
from polyhead.errors import PolyheadError, SpecError
from polyhead.page import Answer, filled
from polyhead.spec.composed import parts_of

RATIOS = 200
"""Steps of a slider on the page whose steps are equal ratios; it stops at two digits."""

EVERY = 5
"""Which of these are recorded: so many steps lie between two of them."""

_BY_PATH = {question.path: question for question in QUESTIONS}


def export(board: Dashboard, state: Mapping[str, Any]) -> str:
    """Return the page filled for a state.

    Args:
        board: What answers.
        state: What the page shows; what it leaves out is as at the start.

    Returns:
        The page as one HTML text.

    Raises:
        SpecError: If it is no state.
        PolyheadError: If what it shows first cannot be answered.
    """
    whole = {**defaults(), **state}
    checked(whole)
    found = {json.dumps([one.path, one.body], sort_keys=True): one for one in _recorded(board, whole)}
    return filled(whole, found.values())


def checked(state: Mapping[str, Any]) -> State:
    """Return what is asked in a whole state; raises SpecError if it is none."""
    try:
        return msgspec.convert(state, State)
    except msgspec.ValidationError as error:
        raise SpecError(f"{told(error)}; this is no state of the page") from None


def _recorded(board: Dashboard, state: Mapping[str, Any]) -> Iterator[Answer]:
    """Yield what the page asks for a state, and what its controls, tokens and screens ask one step from there."""
    source, settings = state["matrix"]["source"], state["matrix"]["settings"]
    yield _asked(board, "model", None)
    yield _asked(board, "records", None)
    whole = _asked(board, "matrix", {"source": source, "settings": {}, "specs": state["matrix"]["specs"]})
    yield whole
    about = header_of(whole.content)
    for row in about["rows"]:
        own = _own(row, settings)
        is_example = source["kind"] == "example"
        moves = [{**own, **move} for move in (_moves(row["controls"]) if is_example else [])]
        bodies = [
            {"source": source, "settings": one, "mechanisms": [row["name"]], "specs": {}}
            for one in ([own] if own else []) + moves
        ]
        yield from _each(board, "matrix", bodies)
    yield from _tokens(board, state, about)
    composed = [state["compose"], *({**state["compose"], "spec": parts_of(entry.spec)} for entry in mechanisms())]
    yield from _each(board, "compose", composed)
    yield from _each(board, "plan", [state["plan"]])
    yield from _each(board, "fits", [{**state["plan"], "asked": asked} for asked in ("context", "batch")])


def _tokens(board: Dashboard, state: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Answer]:
    """Yield the stages of every mechanism: of all tokens of the example, of others the one that is shown."""
    is_example = state["matrix"]["source"]["kind"] == "example"
    shown = about["token"] if state.get("token") is None else state["token"]
    tokens = range(len(about["tokens"])) if is_example else [shown]
    asked = [(row["name"], _own(row, state["matrix"]["settings"])) for row in about["rows"]]
    bodies = [
        {**state["matrix"], "settings": own, "mechanism": name, "token": token}
        for name, own in asked
        for token in tokens
    ]
    yield from _each(board, "stages", bodies)


def _own(row: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the settings that are a mechanism's own."""
    names = {control["name"] for control in row["controls"]}
    return {name: value for name, value in settings.items() if name in names}


def _moves(controls: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each control at each of its values."""
    for control in controls:
        for value in values_of(control):
            yield {control["name"]: value}


def values_of(control: Mapping[str, Any]) -> list[Any]:
    """Return the values of a control that are recorded.

    Args:
        control: The control, as the answer to ``matrix`` has it.

    Returns:
        All that its slider stops at; of one whose steps are equal ratios, every few.
    """
    if control["kind"] == "choice":
        return list(control["choices"])
    low, high, step = control["min"], control["max"], control["step"]
    if step is None:
        ratios = ((high / low) ** (index / RATIOS) for index in range(0, RATIOS + 1, EVERY))
        return [float(f"{low * ratio:.2g}") for ratio in ratios]
    values = (low + step * index for index in range(round((high - low) / step) + 1))
    return [int(value) for value in values] if control["kind"] == "int" else [round(value, 9) for value in values]


def _each(board: Dashboard, path: str, bodies: list[dict[str, Any]]) -> Iterator[Answer]:
    """Yield the answers to several bodies; where there is none, the page says so as the library does."""
    for body in bodies:
        try:
            yield _asked(board, path, body)
        except PolyheadError:
            continue


def _asked(board: Dashboard, path: str, body: Mapping[str, Any] | None) -> Answer:
    question = _BY_PATH[path]
    request = None if body is None else msgspec.convert(body, question.request)
    return Answer(path=path, body=body, content=question.answer(board, request))


def header_of(data: bytes) -> dict[str, Any]:
    """Return what the answer to ``matrix`` says of itself."""
    length = int.from_bytes(data[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["polyhead"])
    return about


QUESTION = Question(
    path="export",
    what="The page as one file, filled for what it shows.",
    request=ExportRequest,
    answer=lambda board, request: export(board, request.state),
    gives=HTML,
)
"""The question that all the others are asked for."""
