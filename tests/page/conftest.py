"""A browser, and a server with a tiny model for it to visit."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.browser import ARGUMENTS, INSTALL, find
from tests.hf.conftest import FAMILIES, fill, save
from tests.page.browsing import Visit


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start a browser; without one skip, and fail where CI counts on it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
    path = find()
    if path is None:
        missing = f"no browser was found; {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a LLaMA of two layers and four heads."""
    transformers = pytest.importorskip("transformers", reason="transformers writes and reads the checkpoint")
    kind, fields = FAMILIES["llama"]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **fields))
    fill(model)
    return save(model, tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> str:
    """Serve the dashboard with a tiny model until the tests end; return its address."""
    from polyhead.dashboard.answers import Dashboard

    return served(Dashboard.of(str(tiny_model)))


def served(board: Any) -> str:
    """Serve a dashboard until the tests end; return its address."""
    from polyhead.dashboard.serve import listen, serve, url_of

    opened = listen("127.0.0.1", 0)
    ready = threading.Event()
    arguments, options = (board, opened, "127.0.0.1"), {"ready": ready.set}
    threading.Thread(target=serve, args=arguments, kwargs=options, daemon=True).start()
    assert ready.wait(20)
    return url_of(opened, "127.0.0.1")


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    """Return what opens the page; afterwards it must have asked its own host alone, and thrown nothing."""
    contexts: list[Any] = []
    asked: list[str] = []
    thrown: list[str] = []
    own = {server}

    def visit(fragment: str = "", base: str = server, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        own.add(base)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.on("console", lambda line: thrown.append(line.text) if line.type == "error" else None)
        page.goto(base + fragment)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not thrown
    assert not [url for url in asked if not url.startswith((*own, "data:", "blob:", "file:", "about:"))]
