"""The dashboard over HTTP: an address for each question, read no further than its limit and answered in its turn."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from polyhead import page
from polyhead.dashboard.answers import ARRAYS, HTML, JSON, Dashboard, NotJsonError, Question, RequestError, decoded
from polyhead.dashboard.guard import Guard, error_response, page_policy
from polyhead.dashboard.model import NotReadyError
from polyhead.dashboard.openapi import EVERY, openapi
from polyhead.errors import CheckpointError, MissingExtraError, PolyheadError, UnknownNameError

T = TypeVar("T")

ROOT = "/api/v1"
MAX_JSON = 256 * 2**10
"""Bytes of a request in JSON."""

MAX_ARRAYS = 8 * 2**20
"""Bytes of a file of arrays."""

MAX_AT_ONCE = 4
"""Requests that are answered at a time, however many processors there are: the largest takes 700 MB meanwhile."""

MAX_WAITING = 64
"""Requests that may wait for their turn."""

PATIENCE = 30
"""Seconds in which a request must have come whole."""


class BusyError(Exception):
    """Too many requests are waiting."""


class Turns:
    """Threads for what takes time: one for each processor, but for a few, and a queue that is not endless.

    Args:
        most_waiting: Requests that may wait for a thread.

    Attributes:
        waiting: Requests that wait or are worked on.
    """

    def __init__(self, most_waiting: int) -> None:
        count = min(os.cpu_count() or 1, MAX_AT_ONCE)
        self._most = most_waiting + count
        self.waiting = 0
        self._turn = anyio.Semaphore(count)
        self._threads = anyio.CapacityLimiter(count)

    async def take(self, request: Request, work: Callable[[], T]) -> T:
        """Do work in a thread, once it is its turn.

        Args:
            request: What it is for; if whoever asked has gone when it is its turn, nothing is done.
            work: The work.

        Returns:
            What it returns.

        Raises:
            BusyError: If too many are waiting.
            ClientDisconnect: If whoever asked has gone.
        """
        if self.waiting >= self._most:
            raise BusyError
        self.waiting += 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await anyio.to_thread.run_sync(work, limiter=self._threads)
        finally:
            self.waiting -= 1


def make_app(board: Dashboard, hosts: Iterable[str] = ()) -> Guard:
    """Return the application.

    Args:
        board: What answers.
        hosts: Names, besides this machine's, by which it may be asked.

    Returns:
        An ASGI application.
    """
    turns = Turns(MAX_WAITING)
    app = Starlette(
        routes=[
            Route("/", functools.partial(_page, text=page.html())),
            Route(f"{ROOT}/openapi.json", functools.partial(_description, text=msgspec.json.encode(openapi(ROOT)))),
            *(
                Route(f"{ROOT}/{one.path}", _endpoint(one, board, turns), methods=["POST" if one.request else "GET"])
                for one in EVERY
            ),
        ],
        exception_handlers={
            PolyheadError: _refused,
            NotReadyError: _later,
            BusyError: _later,
            NotJsonError: _refused,
            RequestError: _refused,
            ClientDisconnect: _gone,
            HTTPException: _http,
            Exception: _unexpected,
        },
    )
    app.state.turns = turns
    return Guard(app, hosts)  # around all of it, so that an error of the server's own is guarded too


async def _page(request: Request, text: str) -> Response:
    return HTMLResponse(text, headers={"content-security-policy": page_policy(text)})


async def _description(request: Request, text: bytes) -> Response:
    return Response(text, media_type=JSON)


def _endpoint(question: Question, board: Dashboard, turns: Turns) -> Callable[[Request], Any]:
    """Return what handles requests of one question."""

    async def endpoint(request: Request) -> Response:
        body = await _body(request, question) if question.request else b""

        def work() -> Response:
            return _response(question, question.answer(board, decoded(question, body)))

        return work() if question.is_quick else await turns.take(request, work)

    return endpoint


def _response(question: Question, answer: Any) -> Response:
    content = answer if isinstance(answer, bytes | str) else msgspec.json.encode(answer)
    headers = {"content-disposition": 'attachment; filename="polyhead.html"'} if question.gives == HTML else None
    return Response(content, headers=headers, media_type=question.gives)


async def _body(request: Request, question: Question) -> bytes:
    """Read a request's body, as far as it may go, if it is of the right kind."""
    wanted, most = (ARRAYS, MAX_ARRAYS) if question.request is bytes else (JSON, MAX_JSON)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise HTTPException(415, f"{question.path} takes {wanted}, and {kind[:64] or 'nothing'!r} came")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    try:
        with anyio.fail_after(PATIENCE):
            async for part in request.stream():
                parts.append(part)
                if sum(map(len, parts)) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise HTTPException(408, f"the request did not come within {PATIENCE} seconds") from None
    return b"".join(parts)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is longer than {most:,} bytes; send less")


# --- errors ---------------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    status = 422
    if isinstance(error, NotJsonError):
        status = 400
    elif isinstance(error, UnknownNameError):
        status = 404
    elif isinstance(error, MissingExtraError):
        status = 424
    elif isinstance(error, CheckpointError):
        status = 409
    return error_response(status, type(error).__name__, str(error))


async def _later(request: Request, error: Exception) -> Response:
    message = str(error) or "too many requests are waiting; ask again"
    return error_response(503, type(error).__name__, message, {"retry-after": "1"})


async def _gone(request: Request, error: Exception) -> Response:
    return error_response(400, "ClientDisconnect", "whoever asked has gone")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, "RequestError", error.detail, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(500, "InternalError", "something went wrong; the server's log says what")
