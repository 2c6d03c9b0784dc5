"""Running the server, until it is stopped."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.app import make_app

MAX_CONNECTIONS = 256
"""Connections at a time; whoever comes after is told to come again."""

LAST_SECONDS = 2.0
"""Seconds that requests have to be answered when the server is told to stop."""


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket, so that what is wrong with its address is known before anything else is done.

    Args:
        host: The host's name or address.
        port: The port; 0 is any that is free.

    Returns:
        The socket, bound and listening.

    Raises:
        OSError: If the port is taken, or the host has no such address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
    except OSError:
        opened.close()
        raise
    return opened


def url_of(opened: socket.socket, host: str) -> str:
    """Return the address to type into a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{opened.getsockname()[1]}/"


def serve(board: Dashboard, opened: socket.socket, host: str, *, ready: Callable[[], None]) -> None:
    """Answer until the process is told to stop.

    Args:
        board: What answers.
        opened: The socket.
        host: The name by which it is asked, besides this machine's own.
        ready: Called when everything is there, just before the first request is taken.
    """
    app = make_app(board, [f"[{host}]" if ":" in host else host])
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30,
    )
    board.model.start()
    ready()
    _Server(config).run(sockets=[opened])


class _Server(uvicorn.Server):
    """A server that ends in seconds whatever is being computed: it writes nothing that could be left half-written."""

    _end: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._end is None:  # a thread that computes cannot be stopped, but with its process
            self._end = threading.Timer(LAST_SECONDS, os._exit, [128 + sig])
            self._end.daemon = True
            self._end.start()
        super().handle_exit(sig, frame)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            if self._end is not None:
                self._end.cancel()
