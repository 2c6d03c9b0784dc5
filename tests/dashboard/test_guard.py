"""Who may ask: this machine's own pages. What a browser is told: run nothing else, send nothing anywhere."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from starlette.testclient import TestClient

from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.app import make_app
from polyhead.dashboard.guard import NOTHING, page_policy

API = "/api/v1/model"


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:8010", "localhost:1", "[::1]:8010", "testserver"]
)
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get(API, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8010",
        "localhost@evil.example",
        "[::2]",
        "[::1",
        "127.0.0.2",
        "",
        " ",
        "localhost:port",
        "localhost/x",
        "localhost\texample",
    ],
)
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    for path in ("/", API, "/nowhere"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 421
        assert response.json()["error"]["type"] == "RefusedError"


@pytest.mark.parametrize("origin", ["http://localhost", "HTTP://LOCALHOST"])
def test_the_pages_own_requests_are_answered(client: TestClient, origin: str) -> None:
    headers = {"origin": origin, "sec-fetch-site": "same-origin"}
    assert client.post("/api/v1/compare", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://localhost", "http://localhost:8010", "http://localhost.evil.example", "x"],
)
def test_requests_of_other_sites_pages_are_refused(client: TestClient, origin: str) -> None:
    for response in (
        client.post("/api/v1/compare", json={}, headers={"origin": origin}),
        client.get(API, headers={"origin": origin}),
        client.get("/", headers={"origin": origin}),
    ):
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_lead_to_the_page_and_no_further(client: TestClient, site: str) -> None:
    headers = {"sec-fetch-site": site}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get(API, headers=headers).status_code == 403
    assert client.post("/api/v1/compare", json={}, headers=headers).status_code == 403
    assert client.post("/", headers=headers).status_code == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_an_address_that_is_typed_is_answered(client: TestClient, site: str) -> None:
    assert client.get(API, headers={"sec-fetch-site": site}).status_code == 200


@pytest.mark.parametrize("path", ["/", API, "/api/v1/openapi.json", "/nowhere", "/api/v1/compare"])
def test_every_answer_says_what_it_may_do(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == (page_policy(client.get("/").text) if path == "/" else NOTHING)
    assert not [name for name in headers if name.startswith("access-control") or name == "set-cookie"]


def test_the_page_may_run_its_own_scripts_alone(client: TestClient) -> None:
    policy = dict(part.split(" ", 1) for part in client.get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", client.get("/").text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert set(re.findall(r"'sha256-([^']+)'", policy["script-src"])) == hashes


def test_a_page_without_scripts_may_run_none() -> None:
    assert "script-src 'none';" in page_policy("<p>hello</p>")


def test_a_host_that_was_given_is_answered() -> None:
    client = TestClient(make_app(Dashboard.of(), hosts=["Attic.local"]), base_url="http://attic.local:8010")
    assert client.get(API).status_code == 200
    assert client.get(API, headers={"host": "cellar.local"}).status_code == 421
