"""Threads for compiled loops: the ones that PyTorch computes with, where these can be had.

Between two of its operations PyTorch's OpenMP threads do not sleep but wait in a loop, for milliseconds. Threads beside
them would have to share their cores with that, so the loops go to the same threads, by the same library's function.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

_HOME = os.getpid()
_LIBRARY = re.compile(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*\.so\S*")


def run(function: int, data: int, threads: int) -> None:
    """Call a compiled function in several threads at a time, and wait for all of them.

    Args:
        function: Address of a ``void function(void *)`` that shares out its work by itself.
        data: What it is given.
        threads: Number of threads, this one among them.
    """
    parallel = None if threads == 1 else openmp(os.getpid())
    if parallel is not None:
        parallel(function, data, threads, 0)
        return
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)  # lets other Python threads run meanwhile
    others = [threading.Thread(target=work, args=(data,), daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work(data)
    for thread in others:
        thread.join()


@functools.cache
def openmp(process: int) -> Callable[[int, int, int, int], None] | None:
    """Return the function that starts a parallel region, of the OpenMP library that PyTorch has loaded, or None.

    Args:
        process: Number of this process: one that was forked has none of the threads that the library counts on.

    Returns:
        ``GOMP_parallel(function, data, threads, flags)``, which GNU's, Intel's and LLVM's libraries have.
    """
    if process != _HOME:
        return None
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return None
    found = dict.fromkeys(_LIBRARY.findall(loaded))
    if len(found) != 1:  # with two of them, which is PyTorch's is not known
        return None
    function = getattr(ctypes.CDLL(next(iter(found))), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
    return function
