"""Which questions there are, and what answers each: the same over HTTP and for a file that is exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from polyhead.dashboard import comparing, requests
from polyhead.dashboard.catalogue import SCHEMA, catalogue
from polyhead.dashboard.model import TextModel
from polyhead.dashboard.sources import Sources
from polyhead.dashboard.state import defaults
from polyhead.errors import SpecError

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
    """

    model: TextModel
    sources: Sources
    state: Mapping[str, Any]

    @classmethod
    def of(cls, model: str | None = None, state: Mapping[str, Any] | None = None) -> Dashboard:
        """Return a dashboard whose model, if it has one, is not loaded yet.

        Args:
            model: What `polyhead.hf.load` takes, or None.
            state: What the page shows at first. None: the defaults.

        Returns:
            The dashboard.
        """
        reads = TextModel(model)
        return cls(model=reads, sources=Sources(reads), state=defaults() if state is None else state)


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
        is_quick=True,
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
        path="arrays",
        what="Keep query, key and value of an .npz or .safetensors file, to compare mechanisms on.",
        request=bytes,
        answer=lambda board, data: {"schema": SCHEMA, **board.sources.keep_arrays(data)},
    ),
)
"""Every question."""


def decoded(question: Question, body: bytes) -> Any:
    """Read a request.

    Args:
        question: What is asked.
        body: What was sent.

    Returns:
        The request, as the question's answer takes it.

    Raises:
        RequestError: If it is not JSON.
        SpecError: If it is, and not the request.
    """
    if question.request is None:
        return None
    if question.request is bytes:
        return body
    try:
        return msgspec.json.decode(body, type=question.request)
    except msgspec.ValidationError as error:
        raise SpecError(f"{error}; see openapi.json for what {question.path} takes") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"this is not JSON: {error}") from None
    except RecursionError:
        raise RequestError("this JSON is nested too deep to be read") from None


class RequestError(Exception):
    """What was sent is no JSON."""
