"""The textbook's table: all fifteen rows of the shared example, computed from its inputs, by both engines."""

import numpy as np
import pytest

import polyhead as ph
from tests.compare.textbook import HALF_A_DIGIT, ROWS

ENGINES = ("numpy", "torch")
NUMBERS = tuple(ROWS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", NUMBERS)
def test_row_of_cat_is_the_printed_one(engine: str, number: int) -> None:
    row = ph.AttentionComparison(engine=engine).run(number, "cat")
    assert row.output == pytest.approx(ROWS[number], rel=0, abs=HALF_A_DIGIT)


@pytest.mark.parametrize("engine", ENGINES)
def test_table_has_the_fifteen_in_their_order_and_lacks_none(engine: str) -> None:
    table = ph.AttentionComparison(engine=engine).table()
    assert (table.token, table.position) == ("cat", 1)
    assert tuple(row.number for row in table) == NUMBERS
    assert table.absent == {}
    for row in table:
        assert row.output == pytest.approx(ROWS[row.number or 0], rel=0, abs=HALF_A_DIGIT)


@pytest.mark.parametrize("number", NUMBERS)
def test_engines_agree_on_every_token(number: int) -> None:
    ours, theirs = (ph.AttentionComparison(engine=engine).result(number) for engine in ENGINES)
    np.testing.assert_allclose(ours.output, theirs.output, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=0, atol=1e-12)
    assert ours.output.dtype == theirs.output.dtype == np.float64


def test_rows_of_equal_mechanisms_are_equal_in_the_table_and_no_others_are() -> None:
    """What keeps the fifteen apart in the comparison: three pairs print the same, and only they do."""
    same = [(a, b) for a in NUMBERS for b in NUMBERS if a < b and ROWS[a] == ROWS[b]]
    assert same == [(1, 13), (2, 6), (11, 12)]
    found = ph.AttentionComparison().differences("cat")
    table = ph.AttentionComparison().table("cat")
    assert [(table[d.first].number, table[d.second].number) for d in found if not d.differ] == same
