"""Which questions there are, and what answers each: the same over HTTP and for a file that is exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from polyhead.bench.records import Record
from polyhead.dashboard import comparing, composing, planning, requests
from polyhead.dashboard.catalogue import catalogue
from polyhead.dashboard.model import TextModel
from polyhead.dashboard.records import measured, records
from polyhead.dashboard.sources import Sources
from polyhead.dashboard.state import defaults
from polyhead.errors import ShapeError
from polyhead.page import SCHEMA

ARRAYS = "application/octet-stream"
JSON = "application/json"
HTML = "text/html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dashboard:
    """All that answers depend on.

    Attributes:
        model: What reads texts.
        sources: What comparisons are made on.
        state: What the page shows at first.
        records: What was measured, by name.
    """

    model: TextModel
    sources: Sources
    state: Mapping[str, Any]
    records: tuple[tuple[str, Record], ...]

    @classmethod
    def of(
        cls,
        model: str | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        more_records: Iterable[tuple[str, Record]] = (),
    ) -> Dashboard:
        """Return a dashboard whose model, if it has one, is not loaded yet.

        Args:
            model: What `polyhead.hf.load` takes, or None.
            state: What the page shows at first, where that is not as in `defaults`.
            more_records: Measurements to show before the project's own.

        Returns:
            The dashboard.
        """
        reads = TextModel(model)
        return cls(
            model=reads,
            sources=Sources(reads),
            state={**defaults(), **(state or {})},
            records=(*more_records, *measured()),
        )

    def beginning_with(self, data: bytes, name: str) -> Dashboard:
        """Return the dashboard whose page begins with some arrays.

        Args:
            data: The bytes of an .npz or .safetensors file.
            name: What it is called, for messages.

        Returns:
            The dashboard, with the same sources and model.

        Raises:
            ShapeError: If they are no arrays that a comparison takes, or too many.
        """
        try:
            kept = self.sources.keep_arrays(data)
        except ShapeError as error:
            raise ShapeError(f"{name}: {error}") from None
        source = {"kind": "arrays", "id": kept["id"], "head": 0}
        return dataclasses.replace(self, state={**self.state, "matrix": {**self.state["matrix"], "source": source}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question.

    Attributes:
        path: Its address below ``/api/v1/``.
        what: What is answered, in a sentence.
        request: What is sent: a class of `requests`, bytes, or None for nothing.
        answer: What answers it: JSON-ready data, bytes, or text.
        is_quick: Whether it is answered at once, and not in its turn.
        gives: The media type of the answer.
    """

    path: str
    what: str
    request: type[requests.Request] | type[bytes] | None
    answer: Callable[[Dashboard, Any], Any]
    is_quick: bool = False
    gives: str = JSON


QUESTIONS = (
    Question(
        path="catalogue",
        what="Everything that can be chosen from.",
        request=None,
        answer=lambda board, _: catalogue(board.state),
    ),
    Question(
        path="model",
        what="The model that reads texts, and how far it is.",
        request=None,
        answer=lambda board, _: {"schema": SCHEMA, **board.model.to_data()},
        is_quick=True,
    ),
    Question(
        path="matrix",
        what="Whole matrices of weights and outputs of the mechanisms on one input, as a safetensors file.",
        request=requests.MatrixRequest,
        answer=lambda board, request: comparing.matrix(request, board.sources),
        gives=ARRAYS,
    ),
    Question(
        path="compare",
        what="One token's rows under every mechanism.",
        request=requests.CompareRequest,
        answer=lambda board, request: comparing.compare(request, board.sources),
    ),
    Question(
        path="stages",
        what="How one token's weights come about under one mechanism, step by step.",
        request=requests.StagesRequest,
        answer=lambda board, request: comparing.stages(request, board.sources),
    ),
    Question(
        path="compose",
        what="Whether four choices are defined together, what runs them, and what they cost.",
        request=requests.ComposeRequest,
        answer=lambda _, request: composing.compose(request),
    ),
    Question(
        path="explain",
        what="Which kernel runs a spec, and why not the others.",
        request=requests.ExplainRequest,
        answer=lambda _, request: composing.explain(request),
    ),
    Question(
        path="plan",
        what="Which attention fits a model, a context and a device, and why.",
        request=requests.PlanRequest,
        answer=lambda _, request: planning.plan(request),
    ),
    Question(
        path="fits",
        what="How long a context, or how large a batch, fits.",
        request=requests.FitsRequest,
        answer=lambda _, request: planning.fits(request),
    ),
    Question(
        path="records",
        what="What was measured: the project's own records, and those that the dashboard was started with.",
        request=None,
        answer=lambda board, _: records(board.records),
    ),
    Question(
        path="arrays",
        what="Keep query, key and value of an .npz or .safetensors file, to compare mechanisms on.",
        request=bytes,
        answer=lambda board, data: {"schema": SCHEMA, **board.sources.keep_arrays(data)},
    ),
)
"""Every question but for the page as a file, see `polyhead.dashboard.export`."""


def decoded(question: Question, body: bytes) -> Any:
    """Read a request.

    Args:
        question: What is asked.
        body: What was sent.

    Returns:
        The request, as the question's answer takes it.

    Raises:
        NotJsonError: If it is not JSON.
        RequestError: If it is, and not the request.
    """
    if question.request is None:
        return None
    if question.request is bytes:
        return body
    try:
        return msgspec.json.decode(body, type=question.request)
    except msgspec.ValidationError as error:
        raise RequestError(f"{told(error)}; see openapi.json for what {question.path} takes") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotJsonError(f"this is not JSON: {error}") from None
    except RecursionError:
        raise NotJsonError("this JSON is nested too deep to be read") from None


def told(error: msgspec.ValidationError) -> str:
    """Return what is wrong with a request, its member first: ``context: expected int <= 1048576``."""
    text, _, path = str(error).partition(" - at `$")
    said = text[:1].lower() + text[1:].replace("`", "")
    member = path.rstrip("`").removeprefix(".")
    return f"{member}: {said}" if member else said


class NotJsonError(Exception):
    """What was sent is no JSON."""


class RequestError(Exception):
    """What was sent is JSON, and not what is taken."""
