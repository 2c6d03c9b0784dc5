"""The dashboard over HTTP: an address for each question, read no further than its limit and answered in its turn."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
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

    A request is in the queue before its body is read, so that the bodies that are held are no more than the queue.

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

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """Be in the queue.

        Raises:
            BusyError: If too many are.
        """
        if self.waiting >= self._most:
            raise BusyError
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def take(self, request: Request, work: Callable[[], T]) -> T:
        """Do work in a thread, once it is its turn.

        Args:
            request: What it is for; if whoever asked has gone when it is its turn, nothing is done.
            work: The work.

        Returns:
            What it returns.

        Raises:
            ClientDisconnect: If whoever asked has gone.
        """
        async with self._turn:
            if await request.is_disconnected():
                raise ClientDisconnect
            return await anyio.to_thread.run_sync(work, limiter=self._threads)


def make_app(board: Dashboard, hosts: Iterable[str] = ()) -> Guard:
    """Return the application.

    Args:
        board: What answers.
        hosts: Names, besides this machine's, by which it may be asked.

    Returns:
        An ASGI application.
    """
    turns, html = Turns(MAX_WAITING), page.filled(board.state, None)
    policy = {"content-security-policy": page_policy(html)}
    description = msgspec.json.encode(openapi(ROOT))
    app = Starlette(
        routes=[
            Route("/", _fixed(html, HTML, policy)),
            Route(f"{ROOT}/openapi.json", _fixed(description, JSON)),
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


def _fixed(content: str | bytes, kind: str, headers: dict[str, str] | None = None) -> Callable[[Request], Any]:
    """Return what answers every request with the same."""

    async def endpoint(request: Request) -> Response:
        return Response(content, headers=headers, media_type=kind)

    return endpoint


def _endpoint(question: Question, board: Dashboard, turns: Turns) -> Callable[[Request], Any]:
    """Return what handles requests of one question."""

    async def endpoint(request: Request) -> Response:
        if question.is_quick:
            return _answered(question, board, b"")
        with turns.queued():
            body = await _body(request, question) if question.request else b""
            return await turns.take(request, functools.partial(_answered, question, board, body))

    return endpoint


def _answered(question: Question, board: Dashboard, body: bytes) -> Response:
    answer = question.answer(board, decoded(question, body))
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
    body = bytearray()
    try:
        with anyio.fail_after(PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise HTTPException(408, f"the request did not come within {PATIENCE} seconds; send it at once") from None
    return bytes(body)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is longer than {most:,} bytes; send less")


# --- errors ---------------------------------------------------------------------------------------


_STATUS: dict[type[Exception], int] = {
    NotJsonError: 400,
    UnknownNameError: 404,
    CheckpointError: 409,
    MissingExtraError: 424,
}
"""What is not 422."""


async def _refused(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)
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
