"""Who may ask, and what a browser is told about every answer: the dashboard is for the machine that it runs on.

A page of another site can make a browser send requests here. Names of hosts that are not ours are refused, or another
site could have its name lead here (DNS rebinding); so are requests that say they come from elsewhere. No header lets
another site read an answer.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of the machine itself."""

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d+)?")
"""A host's name, and its port."""

_SCRIPT = re.compile(r"<script\b[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def page_policy(page: str) -> str:
    """Return what the page may do: run its own scripts, talk to its own server, and show its own pictures.

    Args:
        page: The page, whose scripts all stand in it.

    Returns:
        A Content-Security-Policy.
    """
    hashes = (hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(page))
    scripts = " ".join(f"'sha256-{base64.b64encode(found).decode()}'" for found in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
"""The policy of answers that are no page: whoever opens one has no script run."""


class Guard:
    """Refuses what comes from elsewhere, and tells browsers what an answer may do.

    Args:
        app: What is guarded.
        hosts: Names, besides this machine's, by which it may be asked.
    """

    def __init__(self, app: Starlette, hosts: Iterable[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in (*LOCAL, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":  # nothing here is a websocket; the lifespan's messages pass
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(Headers(scope=scope), scope["method"], scope["path"])
        if refused is None:
            await self.app(scope, receive, send_guarded)
            return
        status, message = refused
        await error_response(status, "RefusedError", message)(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, method: str, path: str) -> tuple[int, str] | None:
        named = headers.getlist("host")
        host = _HOST.fullmatch(named[0]) if len(named) == 1 else None
        if host is None or host[1].lower() not in self.hosts:
            return 421, f"the request is for another host than {', '.join(sorted(self.hosts))}; use one of these"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower() != f"http://{named[0].lower()}":
            return 403, "the request comes from another site's page, which may not ask here"
        is_visit = method == "GET" and path == "/"  # a link on another page may lead to this one
        if not is_visit and site not in (None, "same-origin", "none"):
            return 403, "the request comes from another site, which may not ask here"
        return None


_HEADERS = {
    "content-security-policy": NOTHING,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def error_response(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as every error is told."""
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers=headers)
