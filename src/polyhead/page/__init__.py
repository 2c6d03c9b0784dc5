"""The dashboard's page: one file that needs no network, alone or filled with answers recorded for it.

The page asks questions, a path and a body, and gets answers. In the dashboard a server gives them; in a saved file, in
a notebook and in the documentation they stand in the page itself, and it looks them up by path and body.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html as markup
import json
from collections.abc import Iterable, Mapping
from importlib import metadata, resources
from typing import Any

from polyhead.errors import CheckpointError

PLACE = '<script type="application/json" id="polyhead-recorded">{}</script>'
"""Where recorded answers stand in the page."""

SCHEMA = 1
"""Version of the form of answers that the page reads, which each of them carries."""

HEIGHT = 900
"""Pixels that a frame is high where nothing else is asked."""

_UNPACK = """\
<!doctype html><meta charset="utf-8"><script>
const packed = Uint8Array.from(atob("{packed}"), c => c.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
new Response(unpacked).text().then(text => {{ document.open(); document.write(text); document.close(); }});
</script>"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What was answered to one question, for a page that has no server to ask.

    Attributes:
        path: What was asked, such as ``"matrix"``: the address below ``/api/v1/``.
        body: What was sent with it. None: nothing.
        content: What came: bytes of a binary answer, else JSON-ready data.
    """

    path: str
    body: Mapping[str, Any] | None
    content: Any

    def to_data(self) -> dict[str, Any]:
        """Return the answer as JSON-ready data."""
        question = {"path": self.path, "body": self.body}
        if isinstance(self.content, bytes):
            return {**question, "base64": base64.b64encode(self.content).decode()}
        return {**question, "json": self.content}


def html() -> str:
    """Return the page with nothing recorded in it: it asks the server that it comes from."""
    return resources.files(__name__).joinpath("page.html").read_text(encoding="utf-8")


def version() -> str:
    """Return the version of polyhead that pages are made by."""
    try:
        return metadata.version("polyhead")
    except metadata.PackageNotFoundError:  # run from its source
        return "0"


def filled(state: Mapping[str, Any], answers: Iterable[Answer] | None) -> str:
    """Return the page with a state to begin with, and with answers in it, so that it needs no server.

    Args:
        state: What the page shows at first.
        answers: What it may ask; to anything else it says that nothing was recorded. None: it asks its server.

    Returns:
        The page as one HTML text.

    Raises:
        CheckpointError: If the page has no place for them, or several.
    """
    empty, text = PLACE.format("null"), html()
    if text.count(empty) != 1:
        raise CheckpointError(f"page.html has {text.count(empty)} places for recorded answers; type: make page")
    held = None if answers is None else [answer.to_data() for answer in answers]
    recorded = {"version": version(), "state": state, "answers": held}
    return text.replace(empty, PLACE.format(_inside_script(recorded)))


def frame(state: Mapping[str, Any], answers: Iterable[Answer], *, height: int = HEIGHT) -> str:
    """Return the filled page as a frame to stand in another page, such as a notebook.

    The frame is sandboxed: its scripts reach neither the page around it nor anybody's cookies. The page travels
    compressed in the frame's own source, since a notebook keeps it once for each cell that shows it.

    Args:
        state: What the page shows at first.
        answers: What it may ask.
        height: The frame's height in pixels.

    Returns:
        The HTML of the frame.

    Raises:
        CheckpointError: As of `filled`.
    """
    packed = base64.b64encode(gzip.compress(filled(state, answers).encode(), 9, mtime=0)).decode()
    source = markup.escape(_UNPACK.format(packed=packed))
    return (
        f'<iframe title="polyhead" sandbox="allow-scripts allow-downloads" srcdoc="{source}" '
        f'style="width: 100%; height: {int(height)}px; border: 0"></iframe>'
    )


def _inside_script(data: Any) -> str:
    """Return JSON that no HTML parser takes for markup and no script for the end of a line, whatever texts it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # which leaves nothing but ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
