"""The model that reads texts: how far it is, what it refuses, and that its heads are the library's own."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from polyhead.dashboard import model as reading
from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.app import make_app
from polyhead.dashboard.model import NotReadyError, TextModel, check_model
from polyhead.errors import CheckpointError, MissingExtraError, ShapeError, UnknownNameError, UnsupportedError
from tests.dashboard.conftest import matrices_in
from tests.hf.conftest import FAMILIES, TEXT, fill, save

SOURCE = {"kind": "text", "text": TEXT, "second_text": "the dog ran", "layer": 1, "head": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a LLaMA of two layers and four heads."""
    transformers = pytest.importorskip("transformers", reason="transformers writes and reads the checkpoint")
    kind, fields = FAMILIES["llama"]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **fields))
    fill(model)
    return save(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def board(tiny: Path) -> Dashboard:
    board = Dashboard.of(str(tiny))
    board.model.load()
    return board


@pytest.fixture(scope="module")
def client(board: Dashboard) -> Iterator[TestClient]:
    with TestClient(make_app(board), base_url="http://localhost") as client:
        yield client


def wait_for(model: TextModel, state: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while model.state != state and time.monotonic() < until:
        time.sleep(0.01)
    return model.to_data()


def test_a_model_comes_while_the_page_is_there(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, load = threading.Event(), reading._loaded
    monkeypatch.setattr(reading, "_loaded", lambda name: go.wait(60) and load(name))
    board = Dashboard.of(str(tiny))
    board.model.start()
    told = board.model.to_data()
    assert (told["name"], told["state"], told["message"]) == ("tiny", "loading", "reading the weights")
    assert (told["num_layers"], told["num_heads"], told["max_tokens"]) == (None, None, None)
    with TestClient(make_app(board), base_url="http://localhost") as client:
        response = client.post("/api/v1/matrix", json={"source": SOURCE})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"] == {
            "type": "NotReadyError",
            "message": "tiny is still being loaded; ask again",
        }
        go.set()
        told = wait_for(board.model, "ready")
        assert (told["state"], told["message"]) == ("ready", "")
        assert (told["num_layers"], told["num_heads"], told["max_tokens"]) == (2, 4, 64)
        assert told["seconds"] >= 0
        assert client.post("/api/v1/matrix", json={"source": SOURCE}).status_code == 200


def test_a_model_that_cannot_be_loaded_says_why(tiny: Path, tmp_path: Path) -> None:
    (broken := tmp_path / "broken").mkdir()
    for file in tiny.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"nothing")
    board = Dashboard.of(str(broken))
    board.model.start()
    told = wait_for(board.model, "failed")
    assert told["state"] == "failed"
    assert "broken" in told["message"]
    with pytest.raises(UnsupportedError, match="broken could not be loaded: "):
        board.model.read("hello", layer=0, second_text=None, bare=False)


def test_what_nobody_expected_ends_the_waiting_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("/home/someone/secret")

    monkeypatch.setattr(reading, "_loaded", broken)
    model = TextModel("some-model")
    model.start()
    assert wait_for(model, "failed")["message"] == "the model could not be loaded; the server's log says why"
    assert "secret" in caplog.text


def test_the_matrices_of_a_text_are_the_librarys(client: TestClient, tiny: Path) -> None:
    from polyhead.compare import AttentionComparison
    from polyhead.compare.matrices import matrices

    response = client.post("/api/v1/matrix", json={"source": SOURCE})
    comparison = AttentionComparison.from_model(
        tiny, TEXT, layer=SOURCE["layer"], head=SOURCE["head"], second_text=SOURCE["second_text"]
    )
    expected, _ = matrices_in(matrices(comparison)), matrices_in(response.content)
    about, tensors = matrices_in(response.content)
    assert about == expected[0]
    for name, tensor in expected[1].items():
        np.testing.assert_allclose(tensors[name], tensor, atol=1e-12, rtol=0)
    assert (about["layer"], about["num_layers"], about["head"], about["num_heads"]) == (1, 2, 2, 4)
    assert about["is_model"]


def test_what_the_model_read_is_kept(client: TestClient, board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {**SOURCE, "text": "the cat ran"}
    first = client.post("/api/v1/matrix", json={"source": source}).content
    monkeypatch.setattr(board.model, "read", lambda *args, **kwargs: pytest.fail("it was read again"))
    assert client.post("/api/v1/matrix", json={"source": source}).content == first
    assert client.post("/api/v1/matrix", json={"source": {**source, "head": 0}}).status_code == 200


def test_many_read_at_once(client: TestClient) -> None:
    texts = [" ".join(TEXT.split()[: count + 1]) for count in range(12)]
    found: dict[str, Any] = {}

    def ask(text: str) -> None:
        body = {"source": {**SOURCE, "text": text}, "mechanisms": ["scaled-dot-product"]}
        found[text] = client.post("/api/v1/matrix", json=body)

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text in texts:
        about, _ = matrices_in(found[text].content)
        assert [token.lstrip("Ġ") for token in about["tokens"]] == text.split()


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"layer": 2}, 404, "there is no layer 2 among 2"),
        ({"head": 4}, 404, "head=4 does not exist; the input has heads 0 to 3"),
        ({"text": "the " * 100}, 422, "tokens, and the dashboard shows at most 64; shorten it"),
        ({"second_text": "the " * 100}, 422, "tokens, and the dashboard shows at most 64; shorten it"),
        ({"text": ""}, 422, "source.text: expected str of length >= 1"),
        ({"text": "a" * 8193}, 422, "source.text: expected str of length <= 8192"),
    ],
)
def test_what_cannot_be_read_is_refused(client: TestClient, changed: Any, status: int, message: str) -> None:
    response = client.post("/api/v1/matrix", json={"source": {**SOURCE, **changed}})
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("text", ["\x00", "\u2028</script>", "مرحبا 🐈‍⬛", " ", "\r\n\t"])
def test_any_text_is_read_or_has_no_token(client: TestClient, text: str) -> None:
    response = client.post("/api/v1/matrix", json={"source": {**SOURCE, "text": text}})
    if response.status_code != 200:  # this tokenizer knows few characters, and leaves the others out
        assert "has no token; give at least one word" in response.json()["error"]["message"]
        return
    assert np.isfinite(matrices_in(response.content)[1]["scaled-dot-product/weights"]).all()


def test_more_heads_leave_room_for_fewer_tokens(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_WEIGHTS", 4 * 10 * 10)
    assert board.model.to_data()["max_tokens"] == 10
    with pytest.raises(ShapeError, match="the text has 11 tokens, and the dashboard shows at most 10"):
        board.model.read(" ".join(TEXT.split()[:11]), layer=0, second_text=None, bare=False)


def test_a_model_that_is_not_there_is_known_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist, and nothing is downloaded"):
        check_model(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        check_model(str(tmp_path))


def test_a_model_that_is_not_captured_is_known_too(tmp_path: Path) -> None:
    for name, text in {
        "config.json": '{"model_type": "bert"}',
        "model.safetensors": "",
        "tokenizer.json": "{}",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UnsupportedError, match="model_type='bert' is not captured"):
        check_model(str(tmp_path))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find(name, *a)
    )
    with pytest.raises(MissingExtraError, match=r"--model needs transformers, .*pip install 'polyhead\[hf\]'"):
        check_model(str(tiny))


def test_a_checked_model_is_no_more_than_looked_at(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_loaded", lambda name: pytest.fail("it was loaded"))
    check_model(str(tiny))


def test_a_layer_that_is_none_is_named(board: Dashboard) -> None:
    with pytest.raises(UnknownNameError, match="there is no layer 5"):
        board.model.read("the cat", layer=5, second_text=None, bare=False)
    with pytest.raises(NotReadyError):
        TextModel("later").read("the cat", layer=0, second_text=None, bare=False)
