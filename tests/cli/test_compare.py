"""`polyhead compare`: the inputs it takes, the forms it writes, and what it says of wrong ones."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import polyhead as ph
from tests.cli.conftest import Done, Polyhead, spawn, spawn_on_terminal
from tests.compare.arrays import draw, grouped, heads
from tests.compare.textbook import ROWS

NUMBERS = {number: [f"{x:.4f}" for x in row] for number, row in ROWS.items()}


def rows(text: str) -> dict[str, list[str]]:
    """Return the words of each mechanism's line of the printed table."""
    found = {}
    for line in text.splitlines():
        words = line.replace("●", " ").split()
        if len(words) > 3 and (words[0].isdecimal() or words[0] == "+"):
            found[words[1]] = words
    return found


def refused(done: Done, message: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert message in done.err, done.err


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(grouped(pattern=ph.Causal(), position=ph.Rotary()).to_json(), encoding="utf-8")
    return path


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "qkv.npz"
    query, key, value = heads(length=3)
    np.savez(path, query=query, key=key, value=value, tokens=np.array(["one", "two", "three"]))
    return path


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_the_textbooks_table(call: Polyhead, engine: str) -> None:
    done = call("compare", "--engine", engine)
    assert (done.code, done.err) == (0, "")
    found = rows(done.out)
    assert {int(words[0]): words[3:7] for words in found.values()} == NUMBERS
    assert "shared example; query “cat” at position 1" in done.out
    assert "flash differs from scaled-dot-product by at most " in done.out
    assert "\nmha = gqa: the same spec\n" in done.out
    assert "\nsliding-window = bigbird: both patterns let this token see the same keys\n" in done.out


@pytest.mark.parametrize("token", ["mat", "4", "-1"])
def test_another_token(call: Polyhead, token: str) -> None:
    done = call("compare", "--token", token)
    assert "query “mat” at position 4" in done.out
    assert rows(done.out)["causal"][3:7] == rows(done.out)["scaled-dot-product"][3:7]
    assert "\nscaled-dot-product = causal: both patterns let this token see the same keys\n" in done.out
    assert "= flash" not in done.out  # which has a line of its own


def test_some_mechanisms_in_the_textbooks_order(call: Polyhead) -> None:
    done = call("compare", "--mechanism", "differential", "--mechanism", "5", "--mechanism", "standard")
    assert list(rows(done.out)) == ["scaled-dot-product", "mqa", "differential"]
    assert "flash" not in done.out


def test_bars_grow_with_the_weights(call: Polyhead) -> None:
    assert rows(call("compare").out)["causal"][9] == "█▂"


@pytest.mark.parametrize(("columns", "has"), [(79, ""), (100, ""), (110, "changes"), (160, "note")])
def test_a_narrow_terminal_gets_every_number(columns: int, has: str) -> None:
    """What has no room is left out by whole columns, and notes go below; no number is cut short."""
    done, shown = spawn_on_terminal("compare", columns=columns, NO_COLOR="1")
    heading, *lines = shown.splitlines()[1:]
    assert done.code == 0
    assert ("changes" in heading, "note" in heading) == (has in ("changes", "note"), has == "note")
    first = 3 if "changes" in heading else 2
    assert {int(words[0]): words[first : first + 4] for words in rows("\n".join(lines)).values()} == NUMBERS
    assert ("mla: latent by the textbook's W_down" in lines) == ("note" not in heading)
    assert max(map(len, shown.splitlines()[:17])) <= columns


def test_a_terminal_narrower_than_the_numbers_gets_them_too() -> None:
    _, shown = spawn_on_terminal("compare", columns=50, NO_COLOR="1")
    assert " ".join(["mla", *NUMBERS[15], "sat"]) in " ".join(shown.split())
    assert "…" not in shown


# --- a spec of one's own --------------------------------------------------------------------------


def test_a_spec_is_added_by_its_files_name(call: Polyhead, spec: Path) -> None:
    found = rows(call("compare", "--spec", spec).out)
    assert len(found) == 16
    own = ph.AttentionComparison().add("mine", ph.AttentionSpec.from_json(spec.read_text(encoding="utf-8")))
    assert found["mine"][:3] == ["+", "mine", "combination"]
    assert found["mine"][3:7] == [f"{x:.4f}" for x in own.run("mine").output]


def test_a_spec_is_shown_with_the_mechanisms_asked_for(call: Polyhead, spec: Path) -> None:
    assert list(rows(call("compare", "--spec", spec, "--mechanism", "rope").out)) == ["rope", "mine"]


def test_specs_that_cannot_be_added(call: Polyhead, tmp_path: Path) -> None:
    refused(
        call("compare", "--spec", tmp_path / "no.json"), f"polyhead: cannot read {tmp_path / 'no.json'}: No such file"
    )
    broken, taken, wide = (tmp_path / name for name in ("broken.json", "gqa.json", "wide.json"))
    broken.write_text("{}", encoding="utf-8")
    refused(call("compare", "--spec", broken), f"polyhead: {broken}: expected the JSON of a")
    taken.write_text(grouped().to_json(), encoding="utf-8")
    refused(call("compare", "--spec", taken), "'gqa' is taken; give your combination another name")
    wide.write_text(grouped(1, 8).to_json(), encoding="utf-8")
    refused(call("compare", "--spec", wide), "needs 1 of width 8; change the spec's storage")


# --- one's own tensors ----------------------------------------------------------------------------


def test_tensors_of_a_file(call: Polyhead, tensors: Path) -> None:
    done = call("compare", "--tensors", tensors, "--token", "two", "--head", "3", "--json")
    data = json.loads(done.out)
    expected = ph.AttentionComparison(*heads(length=3), tokens=["one", "two", "three"], head=3).table("two")
    assert (data["title"], data["token"], data["rows"][0]["key_tokens"]) == (
        "own arrays, head 3",
        "two",
        ["one", "two", "three"],
    )
    assert [row["output"] for row in data["rows"]] == [row.output.tolist() for row in expected]


def test_what_is_left_out_has_its_reason(call: Polyhead, tensors: Path, tmp_path: Path) -> None:
    assert "cross is left out: cross-attention needs a second sequence" in call("compare", "--tensors", tensors).out
    refused(call("compare", "--tensors", tensors, "--mechanism", "cross"), "needs a second sequence")
    query, key, value = draw((3, 4), (3, 4), (3, 4))
    np.savez(tmp_path / "cross.npz", query=query, key=key, value=value, cross_query=query)
    assert "left out" not in call("compare", "--tensors", tmp_path / "cross.npz").out


def test_tokens_that_would_break_the_table(call: Polyhead, tmp_path: Path) -> None:
    names = np.array(["\n", "\x1b[31m", "a"])
    np.savez(
        tmp_path / "odd.npz", tokens=names, **dict(zip(("query", "key", "value"), draw(*[(3, 4)] * 3), strict=True))
    )
    done = call("compare", "--tensors", tmp_path / "odd.npz", "--token", "0")
    assert (done.code, len(rows(done.out))) == (0, 14)
    assert "query “·” at position 0" in done.out
    assert "\x1b" not in done.out


def test_files_that_hold_no_tensors(call: Polyhead, tmp_path: Path) -> None:
    array = np.zeros((3, 4))
    files = {
        "missing.npz": "No such file or directory; write it with numpy.savez(...)",
        "text.npz": "; write it with numpy.savez(...)",
        "empty.npz": "No data left in file; write it",
        "cut.npz": "; write it with numpy.savez(...)",
        "one.npy": "it holds a single array; write it",
        "pickled.npz": "Object arrays cannot be loaded when allow_pickle=False",
        "lacks.npz": "lacks the array 'value'; it needs query, key and value",
        "more.npz": "has an array 'mask'; it may have cross_query, key, query, tokens, value",
        "nan.npz": "key is not finite at [0, 0]",
        "name.npz": "is no list of names",
    }
    (tmp_path / "text.npz").write_text("query", encoding="utf-8")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", array)
    np.savez(tmp_path / "pickled.npz", query=np.array([object()], dtype=object), key=array, value=array)
    np.savez(tmp_path / "lacks.npz", query=array, key=array)
    np.savez(tmp_path / "more.npz", query=array, key=array, value=array, mask=array)
    np.savez(tmp_path / "nan.npz", query=array, key=array * np.nan, value=array)
    np.savez(tmp_path / "name.npz", query=array, key=array, value=array, tokens="abc")
    whole = (tmp_path / "more.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, message in files.items():
        refused(call("compare", "--tensors", tmp_path / name), message)


# --- forms ----------------------------------------------------------------------------------------


def test_json_is_the_tables(call: Polyhead) -> None:
    done = call("compare", "--json", "--token", "on")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads(ph.AttentionComparison().table("on").to_json())
    assert json.loads(done.out)["schema"] == 1


def test_csv_on_stdout_is_all_of_stdout(call: Polyhead) -> None:
    done = call("compare", "--csv", "-")
    assert (done.code, done.out, done.err) == (0, ph.AttentionComparison().table().to_csv(), "")
    assert len(list(csv.reader(io.StringIO(done.out)))) == 16


def test_csv_and_pictures_are_written_beside_the_table(call: Polyhead, tmp_path: Path) -> None:
    files = [tmp_path / "new" / name for name in ("a.csv", "a.png")]
    done = call("compare", "--csv", files[0], "--plot", files[1])
    assert len(rows(done.out)) == 15
    assert files[0].read_text(encoding="utf-8") == ph.AttentionComparison().table().to_csv()
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert sorted(files[0].parent.iterdir()) == files
    assert call("compare", "--json", "--plot", tmp_path / "b.svg").out.startswith("{")
    assert ET.parse(tmp_path / "b.svg").getroot().tag.endswith("svg")


def test_two_forms_do_not_share_stdout(call: Polyhead) -> None:
    refused(call("compare", "--json", "--csv", "-"), "--json and --csv - both write to stdout; give --csv a file")


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_a_file_that_cannot_be_written(call: Polyhead, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below" / "a.png"
    done = call("compare", option, path)
    refused(done, f"Invalid value for {option}: cannot write {path}: Not a directory; give another path")
    refused(call("compare", option, tmp_path), "is a directory")


def test_a_plot_of_another_kind_is_refused_before_anything_is_read(call: Polyhead) -> None:
    done = call("compare", "--plot", "a.gif", "--tensors", "missing.npz")
    refused(done, "polyhead: a plot is written as .png or .svg, not as 'a.gif'")


def test_a_plot_of_too_many_tokens(call: Polyhead, tmp_path: Path) -> None:
    for count, message in {
        200: "a plot shows at most 128 tokens and this has 200",
        10_000: "give at most 8192",
    }.items():
        np.savez(tmp_path / "long.npz", **dict.fromkeys(("query", "key", "value"), np.zeros((count, 1))))
        refused(call("compare", "--tensors", tmp_path / "long.npz", "--plot", tmp_path / "long.png"), message)
    assert [file.name for file in tmp_path.iterdir()] == ["long.npz"]


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--token", "zebra"], "no token is called 'zebra'; use one of The, cat, sat, on, mat"),
        (["--token", "7"], "there is no token 7; positions run from 0 to 4"),
        (["--mechanism", "gqaa"], "no mechanism is called 'gqaa'; did you mean gqa?"),
        (["--head", "1"], "head=1 does not exist; the input has one head, 0"),
        (["--engine", "jax"], "'jax' is not one of 'numpy', 'torch'"),
        (["--layer", "1"], "--layer goes with --model; add --model smollm2, for example"),
        (["--text", "a"], "--text goes with --model"),
        (["--second-text", "a"], "--second-text goes with --model"),
        (["--bare"], "--bare goes with --model"),
        (["--model", "smollm2"], '--model needs a text to read; add --text "The cat sat on the mat"'),
        (["--model", "a", "--tensors", "b"], "--model and --tensors are two inputs; give one of them"),
        (["--model", "/nowhere", "--text", "a"], "'/nowhere' does not exist, and nothing is downloaded; give a direc"),
    ],
)
def test_wrong_input_says_what_to_type(call: Polyhead, arguments: list[str], message: str) -> None:
    refused(call("compare", *arguments), message)


def test_errors_of_a_process_go_to_stderr_alone() -> None:
    done = spawn("compare", "--token", "zebra")
    assert (done.code, done.out) == (2, "")
    assert done.err == "polyhead: no token is called 'zebra'; use one of The, cat, sat, on, mat\n"
