"""What the page knows without asking: it is the library's, and needs neither the server's packages nor torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

from polyhead.catalog import EXAMPLE, TEXTBOOK, Settings, devices, mechanisms, models
from polyhead.catalog.controls import controls, settings_from
from polyhead.cost import Precision
from polyhead.dashboard.catalogue import catalogue
from polyhead.dashboard.state import defaults
from polyhead.page import version
from polyhead.planner.tasks import TASKS
from polyhead.spec import AttentionSpec
from polyhead.spec.rules import RULES
from tests.cli.conftest import environment
from tests.dashboard.conftest import Ask

FOUND = catalogue()


def test_it_is_plain_json_and_what_the_server_answers(ask: Ask) -> None:
    assert json.loads(json.dumps(FOUND, allow_nan=False)) == ask("catalogue").json()
    assert (FOUND["schema"], FOUND["version"]) == (1, version())


def test_every_mechanism_is_there_with_all_that_is_said_of_it() -> None:
    for entry, told in zip(mechanisms(), FOUND["mechanisms"], strict=True):
        for field in dataclasses.fields(entry):
            if field.name not in ("substitute", "forces", "aliases"):
                assert told[field.name] == getattr(entry, field.name)
        assert told["aliases"] == list(entry.aliases)
        assert told["forces"] == dataclasses.asdict(entry.forces)
        assert AttentionSpec.from_json(json.dumps({"schema": 1, **told["spec"]})) == entry.spec
        assert told["spec_repr"] == repr(entry.spec)


def test_models_devices_tasks_and_rules_are_the_librarys() -> None:
    for model, told in zip(models(), FOUND["models"], strict=True):
        assert (told["name"], told["title"], told["max_seq_len"]) == (model.name, model.title, model.max_seq_len)
        spec = json.dumps({"schema": 1, "type": "AttentionSpec", **told["spec"]})
        assert AttentionSpec.from_json(spec) == model.layers[0].attention
    assert FOUND["devices"] == [{"name": one.name, "title": one.title, "memory": one.memory} for one in devices()]
    assert [task["name"] for task in FOUND["tasks"]] == list(TASKS)
    assert "{" not in "".join(task["what"] for task in FOUND["tasks"])
    assert FOUND["rules"] == [{"name": rule.name, "statement": rule.statement} for rule in RULES]
    for precision in FOUND["precisions"]:
        Precision.parse(precision)


def test_the_example_and_its_settings() -> None:
    assert FOUND["example"]["tokens"][FOUND["example"]["token"]] == EXAMPLE.token
    assert set(FOUND["settings"]["example"]) == {control.name for control in controls()}
    assert settings_from(FOUND["settings"]["example"], TEXTBOOK) == TEXTBOOK
    assert settings_from(FOUND["settings"]["other"], Settings()) == Settings()


def test_it_begins_as_it_is_told() -> None:
    assert FOUND["state"] == defaults()
    assert catalogue({"screen": "plan"})["state"] == {"screen": "plan"}


def imported(program: str, watched: tuple[str, ...]) -> list[str]:
    """Return which of some modules are there after a program has run."""
    whole = f"import sys; {program}; print(*(set({watched}) & set(sys.modules)))"
    command, env = [sys.executable, "-c", whole], environment()
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout.split()


def test_it_needs_no_servers_packages() -> None:
    watched = ("starlette", "uvicorn", "msgspec", "torch", "transformers", "matplotlib")
    assert imported("import polyhead.dashboard.catalogue as found; found.catalogue()", watched) == []


def test_the_server_needs_no_torch_to_start() -> None:
    program = (
        "from polyhead.dashboard.answers import Dashboard; from polyhead.dashboard.app import make_app; "
        "import polyhead.dashboard.serve; make_app(Dashboard.of())"
    )
    assert imported(program, ("torch", "transformers", "matplotlib", "rich")) == []
