"""Compiled decoding among threads and processes, and with cache directories that are missing, full or broken."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.kernels import compiled, decode_numba, team
from tests.tolerances import assert_close

pytest.importorskip("numba")

SPEC = ph.AttentionSpec(storage=ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=16), pattern=ph.Causal())


def tensors(seed: int = 0, kv_len: int = 700) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 4, 1, 16), (1, 2, kv_len, 16), (1, 2, kv_len, 16))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def decoded(seed: int = 0, kernel: str = "numba", kv_len: int = 700) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = ph.attend(*tensors(seed, kv_len), SPEC, kernel=kernel)
    return output


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_numba, "UNIT_KEYS", 64)
    monkeypatch.setattr(decode_numba, "BYTES_A_THREAD", 1)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("many_units", "threads")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        results.append(decoded())
    assert all(torch.equal(one, results[0]) for one in results)
    assert_close(results[0], decoded(kernel="plain"), torch.float32)


@pytest.mark.usefixtures("many_units")
def test_calls_at_the_same_time() -> None:
    wanted = [decoded(seed, "plain") for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for ours, theirs in zip(pool.map(decoded, range(8)), wanted, strict=True):
                assert_close(ours, theirs, torch.float32)


@pytest.mark.usefixtures("many_units", "threads")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_are_forked_or_spawned(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    torch.set_num_threads(1)  # a forked process cannot use PyTorch's own threads, whatever computes
    here = decoded()
    with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:  # spawned, each imports torch
        for there in pool.map_async(decoded, [0, 0]).get(timeout=120):
            assert_close(there, here, torch.float32)


@pytest.mark.usefixtures("many_units")
def test_threads_of_our_own_where_pytorch_s_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = decoded()
    monkeypatch.setattr(team, "openmp", lambda process: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(decoded(), wanted)


def test_a_process_that_was_forked_counts_on_no_threads_it_does_not_have() -> None:
    assert team.openmp(os.getpid() + 1) is None


PROGRAM = """
import sys, time, warnings
import torch, polyhead as ph
spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=2, head_dim=8), pattern=ph.Causal())
query, key = torch.ones(1, 2, 1, 8), torch.ones(1, 2, 600, 8)
loaded = "numba" in sys.modules
# then
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    print(ph.explain(spec, q_len=1, kv_len=600).kernel)
    output = ph.attend(query, key, key, spec)
right = bool(((output - 1).abs() < 1e-5).all())
print(right, loaded, "numba" in sys.modules, *(str(one.message) for one in caught), sep="|")
"""


def run(directory: Path | None, before: str = "", then: str = "") -> tuple[str, list[str], str]:
    """Decode in a new process; return the kernel, what it says of the result and the warnings, and stderr."""
    program = textwrap.dedent(before) + PROGRAM.replace("# then", textwrap.dedent(then))
    given = {**os.environ, **({} if directory is None else {"NUMBA_CACHE_DIR": str(directory)})}
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    kernel, said = done.stdout.splitlines()
    return kernel, said.split("|"), done.stderr


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that a first process has filled."""
    directory = tmp_path_factory.mktemp("compiled")
    kernel, said, stderr = run(directory)
    assert (kernel, said) == ("numba", ["True", "False", "True"])
    assert stderr == "polyhead: compiling decoding with numba, once for this machine ...\n"
    return directory


@pytest.mark.slow
def test_the_second_process_compiles_nothing(filled: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in filled.rglob("*.nbc")}
    assert before
    _, said, _ = run(filled)
    assert said == ["True", "False", "True"]
    assert {file: file.stat().st_mtime_ns for file in filled.rglob("*.nbc")} == before


def test_what_this_process_has_kept_another_does_not_compile() -> None:
    """Where both keep it by themselves; with a directory that is empty at first it takes two processes, and is slow."""
    decoded()
    refusing = """
    from numba.core.ccallback import CFunc
    def refuse(*_): raise AssertionError("it is compiled again")
    CFunc._compile_uncached = refuse
    """
    _, said, _ = run(None, then=refusing)
    assert said == ["True", "False", "True"]


def compiled_projections(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compile the fewest loops that are kept, in this process, with their files in a directory."""
    from numba.core import config

    from polyhead.kernels import projection_loops

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(directory))
    monkeypatch.setattr(config, "CACHE_DIR", str(directory))
    return compiled.ready(projection_loops.worker, "projections")


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_broken_file_costs_a_warning(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_projections(tmp_path, monkeypatch)
    files = list(tmp_path.rglob(f"*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(b"nothing")
    with pytest.warns(RuntimeWarning, match=r"numba cannot keep compiled projections in .*; empty that directory"):
        assert compiled_projections(tmp_path, monkeypatch).address
    assert {file.read_bytes() for file in files} == {b"nothing"}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_broken_cache_costs_a_warning(filled: Path, suffix: str, tmp_path: Path) -> None:
    for file in filled.rglob("*.nb?"):
        copy = tmp_path / file.relative_to(filled)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"nothing" if file.suffix == f".{suffix}" else file.read_bytes())
    _, said, _ = run(tmp_path)
    assert said[0] == "True"
    assert len(said) == 4
    assert re.match(r"numba cannot keep compiled decoding in .*; empty that directory, or set NUMBA_CACHE_DIR", said[3])


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(tmp_path: Path) -> None:
    full = """
    import numba.core.caching as caching, errno
    def fails(*_): raise OSError(errno.ENOSPC, "No space left on device")
    caching.IndexDataCacheFile._save_index = fails
    """
    _, said, _ = run(tmp_path, full)
    assert said[0] == "True"
    assert "No space left on device" in said[3]


def test_without_a_directory_pytorch_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(file))
    why: Any = compiled.unavailable.__wrapped__()
    assert why == "numba has no directory to keep what it compiles; set NUMBA_CACHE_DIR to one that can be written to"
    kernel, said, _ = run(file)
    assert (kernel, said) == ("decode", ["True", "False", "False"])
