"""What numba compiles, where it cannot be kept; the cache directories themselves are in test_decode_numba."""

import time

import pytest

from polyhead.kernels import compiled


def test_what_cannot_be_kept_is_compiled_with_a_warning():
    asked = []

    def worker(*, kept):
        asked.append(kept)
        if kept:
            raise OSError("No space left on device")
        return "compiled"

    with pytest.warns(
        RuntimeWarning, match=r"numba cannot keep compiled projections in .* \(No space left on device\)"
    ):
        assert compiled.ready(worker, "projections") == "compiled"
    assert asked == [True, False]


def test_an_error_of_the_loops_is_raised():
    def worker(*, kept):
        raise ValueError(f"kept={kept}")

    with pytest.warns(RuntimeWarning, match="kept=True"), pytest.raises(ValueError, match="kept=False"):
        compiled.ready(worker, "projections")


def test_a_line_says_so_where_it_takes_a_while(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "PATIENCE", 0.0)
    assert compiled.ready(lambda *, kept: time.sleep(0.2) or kept, "nothing") is True
    assert capsys.readouterr().err == "polyhead: compiling nothing with numba, once for this machine ...\n"
