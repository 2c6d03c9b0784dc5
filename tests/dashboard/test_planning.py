"""Answers about plans: they are the planner's own, and names are those of the catalogue alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from polyhead.dashboard.planning import MAX_DRAWN, MAX_RAGGED
from polyhead.planner import plan
from polyhead.planner.curves import curves
from polyhead.planner.data import fits_data, to_data
from polyhead.planner.fits import what_fits
from tests.dashboard.conftest import Ask

ASKED: list[dict[str, Any]] = [
    {"model": "llama-3.1-8b", "context": 131072, "device": "rtx-4090", "from_scratch": True},
    {"model": "gpt2", "task": "train", "context": 1024, "device": "h100", "devices": 4, "batch": 32},
    {"model": "t5-base", "context": 512, "device": "l4", "precision": "weights=int8,cache=fp8", "optimise": "memory"},
    {"model": "gemma-2-2b", "task": "retrieve", "written": 7, "window": 1024, "device": "a100-40"},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked["model"])
def test_plans_are_the_planners(ask: Ask, asked: dict[str, Any]) -> None:
    found = plan(**asked)
    expected = to_data(found) | curves(found)
    assert ask("plan", asked).json() == json.loads(json.dumps(expected))


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked["model"])
@pytest.mark.parametrize("quantity", ["context", "batch"])
def test_what_fits_is_the_planners(ask: Ask, asked: dict[str, Any], quantity: str) -> None:
    options = {name: value for name, value in asked.items() if name not in ("optimise", quantity)}
    expected = fits_data(quantity, what_fits(asked=quantity, **options))
    assert ask("fits", {**asked, "asked": quantity}).json() == json.loads(json.dumps(expected))


def test_without_a_device_it_is_this_machine(ask: Ask) -> None:
    found = ask("plan", {"model": "smollm2-135m"}).json()
    assert found["device"]["name"] == "this-machine"
    assert found["context"] == 8192


@pytest.mark.parametrize("field", ["model", "device"])
def test_a_path_is_no_name(ask: Ask, tmp_path: Path, field: str) -> None:
    from polyhead.catalog import device

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (tmp_path / "device.json").write_text(device("h100").to_json(), encoding="utf-8")
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "device.json", "../../etc/passwd", "."):
        name = str(path)[-64:] if field == "model" else str(path)[:64]
        response = ask("plan", {"model": "llama-3-8b", "device": "h100", "context": 10, field: name})
        assert response.status_code == 404
        assert response.json()["error"]["message"].startswith(f"no {field} is called {name!r}")


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"model": "llama"}, 404, "no model is called 'llama'; did you mean"),
        ({"task": "sing"}, 404, "no task is called 'sing'"),
        ({"optimise": "beauty"}, 404, "no objective is called 'beauty'"),
        ({"precision": "fp3"}, 404, "no precision for weights is called 'fp3'"),
        ({"context": 2**20 + 1}, 422, "context: expected int <= 1048576; see openapi.json for what (plan|fits) takes"),
        ({"devices": 7}, 422, "7"),
        ({"model": "bigbird-base", "context": MAX_DRAWN + 64}, 422, f"is past {MAX_DRAWN:,}"),
        ({"task": "encode", "context": MAX_RAGGED + 1}, 422, f"is no multiple of 64, .* give {MAX_RAGGED}"),
    ],
)
def test_refusals_are_the_planners(ask: Ask, changed: dict[str, Any], status: int, message: str) -> None:
    for path, more in (("plan", {}), ("fits", {"asked": "batch"})):
        response = ask(path, {"model": "llama-3-8b", "device": "h100", "context": 4096, **changed, **more})
        if path == "fits" and "devices" in changed:
            assert response.status_code == 200  # where each stack says by itself that it cannot be split so
            continue
        assert response.status_code == status, response.text[:300]
        assert re.search(message, response.json()["error"]["message"])


@pytest.mark.parametrize("context", [MAX_RAGGED, 2047, 32 * 1024])
def test_links_at_random_are_counted_where_that_is_quick(ask: Ask, context: int) -> None:
    assert ask("plan", {"model": "bigbird-base", "context": context, "device": "l4"}).status_code == 200
