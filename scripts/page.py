"""Build the page of the dashboard from its sources in web/, which takes Node 20 or newer.

``python scripts/page.py`` writes src/polyhead/page/page.html. With ``--check`` it writes nothing, and exits with 1
where the page is not what it would write.

What the page knows without asking, the encyclopaedia, is computed first and written to web/src/*.json, from where the
build takes it; `digest` of it stands in the page, so that an older encyclopaedia's can be told without Node.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyhead.catalog import mechanisms
from polyhead.dashboard.catalogue import catalogue

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
PAGE = ROOT / "src/polyhead/page/page.html"
CATALOGUE, FORMULAS = WEB / "src/catalogue.json", WEB / "src/formulas.json"
NODE = 20


UNREAD = {"catalogue": {"settings"}, "mechanism": {"aliases", "inputs", "latex", "spec_repr"}}
"""What the server tells and the page does not read, so that it need not travel with it."""

DIGITS = 7
"""Digits of a baked number: fewer than those in which one processor's exponential differs from another's."""


def catalogue_text() -> str:
    """Return what the page knows without asking, as it is baked into it."""
    told = {name: part for name, part in catalogue().items() if name not in UNREAD["catalogue"]}
    told["mechanisms"] = [
        {name: part for name, part in entry.items() if name not in UNREAD["mechanism"]} for entry in told["mechanisms"]
    ]
    return json.dumps(_rounded(told), ensure_ascii=False)


def formulas_text() -> str:
    """Return each mechanism's formula in LaTeX, which the build turns into MathML."""
    return json.dumps({entry.name: entry.latex for entry in mechanisms()}, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


def digest() -> str:
    """Return what tells one encyclopaedia from another."""
    return hashlib.sha256((catalogue_text() + formulas_text()).encode()).hexdigest()[:16]


def build(out: Path) -> None:
    """Build the page.

    Args:
        out: The file to write.

    Raises:
        FileNotFoundError: If there is no Node.
        subprocess.CalledProcessError: If the sources have an error, which has been printed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm is not installed; building the page takes Node {NODE} or newer")
    CATALOGUE.write_text(catalogue_text(), encoding="utf-8")
    FORMULAS.write_text(formulas_text(), encoding="utf-8")
    if not (WEB / "node_modules/.package-lock.json").is_file():
        subprocess.run([npm, "ci", "--silent"], cwd=WEB, check=True)
    environment = {**os.environ, "PAGE_OUT": str(out), "PAGE_DIGEST": digest()}
    for command in ("check", "build"):
        subprocess.run([npm, "run", "--silent", command], cwd=WEB, env=environment, check=True, stdout=sys.stderr)


def is_stale() -> bool:
    """Whether the page is not what its sources make."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "page.html"
        build(fresh)
        return not PAGE.is_file() or fresh.read_bytes() != PAGE.read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the page, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the page of the dashboard.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    try:
        if not parser.parse_args(arguments).check:
            build(PAGE)
        elif is_stale():
            print(f"{PAGE.relative_to(ROOT)} is stale; type: make page", file=sys.stderr)
            return 1
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
