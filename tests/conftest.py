"""What holds in every test: reproducible draws, memory that is never silently zero, and summaries at the end."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import hypothesis
import pytest
import torch

# The same examples on every machine and at every call; a failure repeats, and shared machines may be slow.
hypothesis.settings.register_profile("polyhead", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("polyhead")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Let Python's collector of garbage pass over what stays to the end: modules, and thousands of tests.

    A million objects are looked through in half a second, and that is done again and again while tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], 100)


@pytest.fixture(autouse=True)
def new_memory_is_nan(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill new tensors with NaN, so that an element that a kernel forgets to write shows."""
    if request.node.get_closest_marker("gpu"):  # there, deterministic algorithms need settings of their own
        yield
        return
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def nobodys_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what whoever runs the tests has calibrated out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def shortened() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which a run of the benchmark measures the machine for hundredths of a second, not seconds."""
    from polyhead.bench import ceilings, harness

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(harness, "measure_ceilings", functools.partial(ceilings.measure_ceilings, seconds=0.02))
            patch.setattr(ceilings, "READ_BYTES", 2**22)  # to allocate 256 MiB takes longer than that
            yield

    return context


@pytest.fixture
def short_ceilings(shortened: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Measure the machine for less, before and after a run of the benchmark."""
    with shortened():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded as ``record_property("summary", text)``."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    texts = [str(text) for report in reports for name, text in report.user_properties if name == "summary"]
    for text in dict.fromkeys(texts):
        title, _, body = text.partition("\n")
        terminalreporter.section(title)
        terminalreporter.write_line(body)
