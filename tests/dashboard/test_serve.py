"""The server as a process: its address, its log, its end, and many clients at a time."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.dashboard.serve import listen, url_of
from tests.cli.conftest import start
from tests.dashboard.test_arrays import npz


def test_any_free_port_is_taken() -> None:
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as other:
        assert one.getsockname()[1] != other.getsockname()[1]
        assert url_of(one, "127.0.0.1") == f"http://127.0.0.1:{one.getsockname()[1]}/"
        assert url_of(one, "localhost") == f"http://localhost:{one.getsockname()[1]}/"
        assert url_of(one, "::1") == f"http://[::1]:{one.getsockname()[1]}/"


def test_a_port_that_is_taken_is_an_error() -> None:
    with listen("127.0.0.1", 0) as one, pytest.raises(OSError, match="Address already in use"):
        listen("127.0.0.1", one.getsockname()[1])


INTERRUPTED = "\npolyhead: interrupted\n"
"""What is written at the end, below the terminal's own ^C."""


class Server:
    """`polyhead serve` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.began = time.monotonic()
        self.process = start("serve", "--port", "0", *arguments)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.port = int(self.line.split(":")[3].split("/")[0])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def post(self, path: str, body: Any) -> tuple[int, bytes]:
        return self.ask("POST", f"/api/v1/{path}", json.dumps(body).encode(), **{"Content-Type": "application/json"})

    def end(self, how: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(how)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err

    def status(self, name: str) -> int:
        """Return a number that the system keeps of the process."""
        (line,) = (line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if name in line)
        return int(line.split()[1])

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208


@pytest.fixture
def own_server() -> Iterator[Server]:
    """Return a server that the test may end."""
    found = Server()
    yield found
    if found.process.poll() is None:
        found.end()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server that many tests ask, and that must have nothing to say of it at the end."""
    found = Server()
    yield found
    assert found.end() == (130, INTERRUPTED)


def test_it_says_where_it_is_and_nothing_else(own_server: Server) -> None:
    assert own_server.line == f"polyhead: http://127.0.0.1:{own_server.port}/ (Ctrl-C ends it)\n"
    assert own_server.ask("GET", "/api/v1/catalogue")[0] == 200
    assert time.monotonic() - own_server.began < 5  # measured: 0.4 s where nothing else runs
    assert own_server.post("matrix", {})[0] == 200
    assert own_server.ask("GET", "/nowhere")[0] == 404
    assert own_server.end() == (130, INTERRUPTED)


def test_it_ends_when_it_is_told_to(own_server: Server) -> None:
    assert own_server.ask("GET", "/")[0] == 200
    code, err = own_server.end(signal.SIGTERM)
    assert (code, err) == (-signal.SIGTERM, "")


def test_it_ends_while_somebody_listens(own_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", own_server.port)) as idle:
        idle.sendall(b"POST /api/v1/matrix HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
        began = time.monotonic()
        assert own_server.end()[0] == 130
        assert time.monotonic() - began < 10


def test_it_ends_while_it_computes(own_server: Server) -> None:
    query, key, value = np.random.default_rng(0).normal(size=(3, 16, 512, 16)).astype("f4")
    data = npz(query=query, key=key, value=value)
    _, answer = own_server.ask("POST", "/api/v1/arrays", data, **{"Content-Type": "application/octet-stream"})
    body = json.dumps({"source": {"kind": "arrays", "id": json.loads(answer)["id"]}}).encode()
    head = "POST /api/v1/matrix HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(8):  # seconds of work, of which most waits
            client = stack.enter_context(socket.create_connection(("127.0.0.1", own_server.port)))
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.5)
        began = time.monotonic()
        code, err = own_server.end()
    assert time.monotonic() - began < 10  # measured: 2 s, and far more for all of them
    assert (code, err) == (130, "")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /api/v1/matrix HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/matrix HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: Server, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request_bytes)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(64).startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))
    assert server.ask("GET", "/api/v1/model")[0] == 200


def test_who_hangs_up_is_no_error(server: Server) -> None:
    head = b"POST /api/v1/matrix HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b'Content-Length: 90\r\n\r\n{"a'
    for sent in range(0, len(whole), 12):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(whole[:sent])
    assert server.post("matrix", {})[0] == 200


BODIES: tuple[tuple[str, Any], ...] = (
    ("matrix", {}),
    ("matrix", {"settings": {"window": 2}, "mechanisms": ["sliding-window"]}),
    ("compare", {"token": "mat"}),
    ("stages", {"mechanism": "flash", "token": 2}),
    ("plan", {"model": "llama-3-8b", "device": "h100", "context": 65536}),
    ("fits", {"model": "gpt2", "device": "l4", "asked": "batch"}),
    ("compare", {"token": "nobody"}),
    ("matrix", {"settings": {"window": -1}}),
)


@pytest.mark.slow
def test_many_clients_leave_nothing_behind(own_server: Server) -> None:
    own_server.post("matrix", {})
    own_server.post("plan", BODIES[4][1])
    threads, files = own_server.status("Threads"), own_server.files
    statuses: collections.Counter[int] = collections.Counter()
    until = time.monotonic() + 30
    peak = 0

    def visit(seed: int) -> None:
        numbers = random.Random(seed)
        while time.monotonic() < until:
            path, body = numbers.choice(BODIES)
            if numbers.random() < 0.1:  # sends half a request and hangs up
                with socket.create_connection(("127.0.0.1", own_server.port)) as client:
                    client.sendall(b"POST /api/v1/plan HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
            else:
                statuses[own_server.post(path, body)[0]] += 1

    visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(50)]
    for visitor in visitors:
        visitor.start()
    while any(visitor.is_alive() for visitor in visitors):
        peak = max(peak, own_server.status("VmRSS"))
        time.sleep(0.2)
    assert statuses[200] > 100
    assert set(statuses) <= {200, 404, 422, 503}
    assert peak < 600 * 1024  # KiB
    _settle(own_server, files)
    assert own_server.files <= files + 2
    assert own_server.status("Threads") <= threads + 2 * (os.cpu_count() or 1)
    assert own_server.end() == (130, INTERRUPTED)


def _settle(server: Server, files: int) -> None:
    """Wait until connections that were kept alive are closed."""
    until = time.monotonic() + 40
    while server.files > files + 2 and time.monotonic() < until:
        time.sleep(0.5)
