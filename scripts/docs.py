"""Write what the pages have from the code: docs/mechanisms.md and docs/cli.md whole, of others the outputs.

``python scripts/docs.py`` writes them. With ``--check`` it writes nothing, names each page that is not what it
would write, and then exits with 1.

In a page written by hand, the text block below a line ``<!-- $ polyhead list -->`` is what that command prints, and
the one below ``<!-- >>> -->`` what the Python block before it prints; the table below ``<!-- models NAME -->`` is that
of ``scripts/model_table.py``, and below ``<!-- bench CASE -->`` that of ``scripts/bench_table.py``. A page's blocks run
from top to bottom, in one empty folder and with one set of Python names, as a reader would type them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from polyhead.catalog import Mechanism, mechanisms

ROOT = Path(__file__).resolve().parents[1]
HELP_WIDTH = 100
BAR = r"\|"
MADE_BY = "*Made by `python scripts/docs.py` from {source}; change that, then type `make docs`.*"

MECHANISMS_INTRO = """\
Attention is four choices: what is stored (*storage*), how position enters (*position*), which pairs may meet
(*pattern*), and how scores become weights (*weighting*). Each mechanism below changes one of them in the
baseline, but for three: the baseline itself, cross-attention (another *source* of keys and values) and
FlashAttention (another *computation* of the same function).

Symbols: N tokens, width d, H heads of width d_h = d/H, G groups of heads, window w, a latent of width d_c and
its RoPE key of width d_r. *Cache* is how many numbers a layer keeps for each token. The Python under each
mechanism is its spec on the textbook's shared example, five tokens of width 4; `polyhead show NAME` prints it
with what it computes there."""

CLI_INTRO = "Each command's own `--help`, in full."

RUN = re.compile(
    r"^```python\n(?P<python>.*?)^```\n|^(?P<marker><!-- (?P<what>\$ [^\n]+|>>>) -->\n)```text\n.*?^```\n",
    re.MULTILINE | re.DOTALL,
)
"""A Python block, or a marker with the text block below it."""

TABLE = re.compile(r"^(?P<marker><!-- (?P<script>models|bench) (?P<names>[^\n]+) -->\n)(?:\|[^\n]*\n)*", re.MULTILINE)
"""A marker with the table of models, or of measurements, below it."""

TABLES = {"models": "model_table.py", "bench": "bench_table.py"}
"""What makes the table of each marker."""

Page = Callable[[], str]


def mechanisms_page() -> str:
    """Return docs/mechanisms.md: the table of the fifteen, then a section for each."""
    made_by = MADE_BY.format(source="`src/polyhead/catalog/mechanisms`")
    table = markdown_table(
        ("#", "Name", "Year", "Paper", "Formula", "Time", "Cache", "Changes"),
        (mechanism_row(entry) for entry in mechanisms()),
    )
    sections = [mechanism_section(entry) for entry in mechanisms()]
    return page("The fifteen mechanisms", made_by, MECHANISMS_INTRO, table, *sections)


def mechanism_row(entry: Mechanism) -> tuple[str, ...]:
    """Return a mechanism's cells in the table."""
    link = f"[{entry.name}](#{anchor(entry)})"
    formula = f"`{entry.formula}`"
    source = (str(entry.year), entry.paper)
    return (str(entry.number), link, *source, formula, entry.time, entry.cache, entry.changes)


def mechanism_section(entry: Mechanism) -> str:
    """Return a mechanism's section."""
    return "\n\n".join(
        [
            f"## {heading(entry)}",
            entry.what,
            fenced("math", entry.latex),
            f"- **Gains:** {entry.gains}\n- **Loses:** {entry.loses}\n- **When:** {entry.when}",
            f"Also called: {', '.join(f'`{alias}`' for alias in entry.aliases)}.",
            fenced("python", repr(entry.spec)),
        ]
    )


def heading(entry: Mechanism) -> str:
    """Return the heading of a mechanism's section."""
    return f"{entry.number}. {entry.title}"


def anchor(entry: Mechanism) -> str:
    """Return the anchor that GitHub gives the heading."""
    kept = (character for character in heading(entry).lower() if character.isalnum() or character in " -")
    return "".join(kept).replace(" ", "-")


def cli_page(command: click.Command | None = None) -> str:
    """Return docs/cli.md: the help of a command and of all below it; by default polyhead's own."""
    root = importlib.import_module("polyhead.cli.main").cli if command is None else command
    made_by = MADE_BY.format(source="the commands in `src/polyhead/cli`")
    sections = [f"## {path}\n\n{fenced('text', text)}" for path, text in helps(root, "polyhead")]
    return page("The command line", made_by, CLI_INTRO, *sections)


def helps(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Walk a command tree, top first.

    Args:
        command: The command to begin with.
        name: What it is typed as.
        parent: The context of the command above it.

    Yields:
        What each command is typed as, and its help text; hidden ones are left out.
    """
    settings = {**command.context_settings, "terminal_width": HELP_WIDTH, "max_content_width": HELP_WIDTH}
    context = command.context_class(command, info_name=name, parent=parent, **settings)
    with context.scope(cleanup=False):
        yield context.command_path, click.unstyle(command.get_help(context))
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            below = command.get_command(context, child)
            if below is not None and not below.hidden:
                yield from helps(below, child, context)


def page_by_hand(name: str) -> str:
    """Return a page of this repository with the outputs that its commands and its Python have now."""
    return with_outputs((ROOT / name).read_text(encoding="utf-8"))


def with_outputs(text: str) -> str:
    """Run a page's Python and the commands of its markers, and write what they print below them."""
    names: dict[str, object] = {"__name__": "page"}
    printed = ""

    def replace(found: re.Match[str]) -> str:
        nonlocal printed
        if found["python"] is not None:
            printed = python_output(found["python"], names)
            return found[0]
        what = found["what"]
        shown = printed if what == ">>>" else f"{what}\n{command_output(what[2:])}"
        return f"{found['marker']}{fenced('text', shown)}\n"

    text = TABLE.sub(lambda found: f"{found['marker']}{table(found['script'], found['names'].split())}\n", text)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return RUN.sub(replace, text)


def table(kind: str, names: Sequence[str]) -> str:
    """Return what a script of `TABLES` prints for some names."""
    printed: str = runpy.run_path(str(ROOT / "scripts" / TABLES[kind]))["table"](names)
    return printed


def python_output(source: str, names: dict[str, object]) -> str:
    """Run Python with the names given, to which it adds its own, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(source, "<page>", "exec", dont_inherit=True), names)  # this file's __future__ is not the page's
    return output.getvalue()


def command_output(line: str) -> str:
    """Run a command line of polyhead and return what it prints on stdout.

    Raises:
        ValueError: If it is no command of polyhead, or fails.
    """
    program, *arguments = shlex.split(line)
    if program != "polyhead":
        raise ValueError(f"`{line}` is no command of polyhead")
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as problem:
        try:
            importlib.import_module("polyhead.cli.main").main(arguments)
        except SystemExit as stop:
            if stop.code:
                raise ValueError(f"`{line}` exits with {stop.code}: {problem.getvalue().strip()}") from None
    return click.unstyle(output.getvalue())


def page(title: str, *parts: str) -> str:
    """Return a Markdown page."""
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def fenced(language: str, text: str) -> str:
    """Return a fenced block, without blanks at the ends of its lines."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "\n".join([f"```{language}", *lines, "```"])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a bar inside a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def records_file() -> str:
    """Return the project's own measurements in one file, as the dashboard has them where it is installed."""
    from polyhead.bench.records import BENCHMARK

    found = {}
    for path in sorted(
        (ROOT / "benchmarks" / "results").glob("*.json"), key=lambda path: ("decode" in path.stem, path)
    ):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("benchmark", BENCHMARK) == BENCHMARK:
            found[path.stem] = data
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"


PAGES: Mapping[str, Page] = {
    "docs/mechanisms.md": mechanisms_page,
    "docs/cli.md": cli_page,
    "docs/exercises.md": functools.partial(page_by_hand, "docs/exercises.md"),
    "docs/run-your-model.md": functools.partial(page_by_hand, "docs/run-your-model.md"),
    "docs/real-models.md": functools.partial(page_by_hand, "docs/real-models.md"),
    "docs/how-it-is-fast.md": functools.partial(page_by_hand, "docs/how-it-is-fast.md"),
    "docs/plan.md": functools.partial(page_by_hand, "docs/plan.md"),
    "docs/dashboard.md": functools.partial(page_by_hand, "docs/dashboard.md"),
    "docs/layer.md": functools.partial(page_by_hand, "docs/layer.md"),
    "src/polyhead/dashboard/records.json": records_file,
    "docs/your-own.md": functools.partial(page_by_hand, "docs/your-own.md"),
}


UNCHECKED: Mapping[str, Page] = {"README.md": functools.partial(page_by_hand, "README.md")}
"""Pages that are written and not checked: they show rounding errors, which differ between machines."""


def write(pages: Mapping[str, Page], root: Path) -> None:
    """Write every page below a folder."""
    for name, render in pages.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(), encoding="utf-8")


def stale(pages: Mapping[str, Page], root: Path) -> list[str]:
    """Return the names of the pages that are missing below a folder, or not what they should be."""

    def is_fresh(file: Path, render: Page) -> bool:
        return file.is_file() and file.read_text(encoding="utf-8") == render()

    return [name for name, render in pages.items() if not is_fresh(root / name, render)]


def main(arguments: Sequence[str] | None = None, pages: Mapping[str, Page] = PAGES, root: Path = ROOT) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the pages of docs that are made from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    if not parser.parse_args(arguments).check:
        write({**pages, **UNCHECKED} if pages is PAGES else pages, root)
        return 0
    names = stale(pages, root)
    for name in names:
        print(f"{name} is stale; type: make docs", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
