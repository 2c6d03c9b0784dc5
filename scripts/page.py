"""Build the page of the dashboard from its sources in web/, which takes Node 20 or newer.

``python scripts/page.py`` writes src/polyhead/page/page.html. With ``--check`` it writes nothing, and exits with 1
where the page is not what it would write.

What the page knows without asking, the encyclopaedia, is computed first and written to web/src/catalogue.json, from
where the build takes it; `digest` of it stands in the page, so that an older encyclopaedia's can be told without Node.
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

from polyhead.dashboard.catalogue import catalogue

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
PAGE = ROOT / "src/polyhead/page/page.html"
CATALOGUE = WEB / "src/catalogue.json"
NODE = 20


def catalogue_text() -> str:
    """Return what the page knows without asking, as it is baked into it."""
    return json.dumps(catalogue(), ensure_ascii=False, indent=1)


def digest() -> str:
    """Return what tells one encyclopaedia from another."""
    return hashlib.sha256(catalogue_text().encode()).hexdigest()[:16]


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
