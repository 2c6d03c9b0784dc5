"""With numpy, click and rich alone the NumPy half works, and the other half says which extra to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import polyhead
from polyhead.cli.main import EXTRAS
from tests.compare.textbook import HALF_A_DIGIT, ROWS

ROOT = Path(__file__).resolve().parents[1]

WITHOUT_EXTRAS = """
import importlib.abc, sys

EXTRAS = {"torch", "jaxtyping", "transformers", "matplotlib", "safetensors", "tokenizers", "gguf", "accelerate"}
EXTRAS |= {"starlette", "uvicorn", "msgspec"}

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""

COMPARE = """
import polyhead as ph

table = ph.AttentionComparison().table(token="cat")
for shown in (ph.AttentionComparison(), ph.mechanism("gqa").spec, ph.plan("llama-3-8b", device="h100")):
    html = shown._repr_mimebundle_()["text/html"]
    assert html.startswith("<table>") and "<iframe" in html  # no picture, and no error
print(table.to_json())
"""

NEEDS = """
import polyhead as ph

spec = ph.mechanism("gqa").spec
uses = {
    "attend": lambda: ph.attend(None, None, None, spec),
    "explain": lambda: ph.explain(spec, q_len=1, kv_len=1),
    "engine": lambda: ph.AttentionComparison(engine="torch"),
    "plot": lambda: ph.AttentionComparison().plot(),
}
for name, use in uses.items():
    try:
        use()
    except ph.MissingExtraError as error:
        print(name, "|", error)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which Python finds no extra, as if none were installed."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(WITHOUT_EXTRAS, encoding="utf-8")
    source = str(Path(polyhead.__file__).parents[1])
    path = os.pathsep.join(filter(None, [str(folder), source, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the checkout with its core's dependencies alone, and return that environment's Python."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    constraints = ["-c", str(ROOT / "constraints.txt"), "--build-constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), "pip"], check=True, timeout=600)
    subprocess.run([*install, *constraints, str(ROOT)], check=True, timeout=600)
    return python


def python(code: str, env: dict[str, str] | None = None, executable: str | Path = sys.executable) -> str:
    command = [str(executable), "-c", code]
    return subprocess.run(command, check=True, env=env, capture_output=True, encoding="utf-8", timeout=120).stdout


def command_line(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from polyhead.cli.main import main; main()", *arguments]
    return subprocess.run(command, check=False, env=env, capture_output=True, encoding="utf-8", timeout=120)


def check_rows(text: str) -> None:
    rows = {row["number"]: row["output"] for row in json.loads(text)["rows"]}
    assert rows.keys() == ROWS.keys()
    for number, output in rows.items():
        assert output == pytest.approx(ROWS[number], rel=0, abs=HALF_A_DIGIT), number


def test_the_finder_hides_what_is_installed_here(bare: dict[str, str]) -> None:
    code = "import importlib.util as u; print([n for n in {!r} if u.find_spec(n)])"
    names = ["numpy", "rich", "click"]
    assert python(code.format(names), bare).strip() == str(names)
    for hidden in ("torch", "matplotlib", "transformers.models"):
        with pytest.raises(subprocess.CalledProcessError) as error:
            python(f"import {hidden}", bare)
        assert f"No module named {hidden.partition('.')[0]!r}" in error.value.stderr


def test_the_shared_example_is_compared(bare: dict[str, str]) -> None:
    check_rows(python(COMPARE, bare))


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--models"], ["show", "mla"], ["show", "llama-3-8b"], ["compare"], ["--help"], ["--version"]],
)
def test_commands_that_need_no_extra(bare: dict[str, str], arguments: list[str]) -> None:
    done = command_line(*arguments, env=bare)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_compare_in_every_form(bare: dict[str, str], tmp_path: Path) -> None:
    check_rows(command_line("compare", "--json", env=bare).stdout)
    done = command_line("compare", "--csv", str(tmp_path / "rows.csv"), env=bare)
    assert done.returncode == 0
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 16


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["explain", "gqa"], "torch", "torch"),
        (["compare", "--engine", "torch"], "torch", "torch"),
        (["compare", "--plot", "a.png"], "matplotlib", "plot"),
        (["compare", "--model", "{checkpoint}", "--text", "a"], "torch", "hf"),
        (["serve"], "starlette", "serve"),
        (["export", "page.html"], "starlette", "serve"),
    ],
)
def test_commands_that_need_one(
    bare: dict[str, str], tmp_path: Path, arguments: list[str], package: str, extra: str
) -> None:
    config = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 8, "vocab_size": 8}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(json.dumps(config), encoding="utf-8")
    done = command_line(*(word.format(checkpoint=tmp_path) for word in arguments), env=bare)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith(f"needs {package}, which is not installed; type: pip install 'polyhead[{extra}]'\n")


def test_names_that_need_an_extra_say_which(bare: dict[str, str]) -> None:
    lines = dict(line.split(" | ") for line in python(NEEDS, bare).splitlines())
    install = "which is not installed; type: pip install 'polyhead[{}]'"
    assert lines.pop("plot") == f"a plot needs matplotlib, {install.format('plot')}"
    assert lines.keys() == {"attend", "explain", "engine"}
    assert all(line.endswith(install.format("torch")) for line in lines.values())


@pytest.mark.slow
def test_a_real_environment_with_the_core_alone(installed: Path, tmp_path: Path) -> None:
    frozen = subprocess.run(
        [str(installed), "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True, timeout=120
    )
    names = {package["name"] for package in json.loads(frozen.stdout)}
    assert {"polyhead", "numpy", "click", "rich"} <= names
    assert not names & {"torch", "jaxtyping", "transformers", "matplotlib", "safetensors", "tokenizers", "gguf"}
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "NO_COLOR"}}
    check_rows(python(COMPARE, env, installed))
    command = installed.with_name("polyhead")
    for arguments in (["list"], ["show", "gqa"], ["compare"]):
        subprocess.run([str(command), *arguments], check=True, env=env, capture_output=True, cwd=tmp_path, timeout=120)
    done = subprocess.run(
        [str(command), "explain", "gqa"],
        check=False,
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "pip install 'polyhead[torch]'" in done.stderr
    shown = subprocess.run(
        [str(command), "--version"], check=True, env=env, capture_output=True, text=True, timeout=120
    )
    assert shown.stdout.count("is missing: pip install") == len(EXTRAS)
