"""Who is let in: host, origin, key, content type, size; each with its exact status."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import httpx2
import pytest
from conftest import Site, serving

HOSTS = {
    "127.0.0.1": True,
    "127.0.0.1:7311": True,
    "localhost:1": True,
    "LOCALHOST": True,
    "[::1]:80": True,
    "": False,
    "evil.example": False,
    "127.0.0.1.evil.example": False,
    "localhost.evil.example:7311": False,
    "0.0.0.0:7311": False,
    "127.0.0.1:7311@evil.example": False,
    "localhost:port": False,
}
ORIGINS = {
    None: True,
    "http://localhost:3000": True,
    "https://127.0.0.1": True,
    "http://[::1]:8080": True,
    "null": False,
    "": False,
    "http://evil.example": False,
    "http://localhost.evil.example": False,
    "file://localhost": False,
}
ROUTES = (
    ("POST", "/api/trap"),
    ("POST", "/api/stream"),
    ("GET", "/api/events"),
    ("GET", "/api/processes"),
    ("GET", "/api/processes/1"),
    ("GET", "/api/processes/1/calls"),
    ("GET", "/api/status"),
    ("GET", "/api/doctor"),
    ("POST", "/api/down"),
    ("GET", "/api/openapi.json"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/nowhere"),
)


@pytest.mark.parametrize("path", ["/healthz", "/api/status", "/v1/models"])
async def test_host_and_origin_are_checked_together(site: Site, path: str) -> None:
    async with site.http() as http:
        for (host, good_host), (origin, good_origin) in product(HOSTS.items(), ORIGINS.items()):
            headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
            answer = await http.get(path, headers=headers)
            expected = 421 if not good_host else 403 if not good_origin else 200
            assert answer.status_code == expected, (host, origin)
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_unix_socket_takes_any_host_but_no_foreign_origin(site: Site) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=str(site.socket))
    async with site.http(transport=transport) as http:
        assert (await http.get("/api/status", headers={"Host": "aios"})).status_code == 200
        refused = await http.get("/api/status", headers={"Origin": "http://evil.example"})
        assert refused.status_code == 403


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x"]
)
async def test_nothing_is_done_without_the_right_key(
    site: Site, method: str, path: str, key: str | None
) -> None:
    before = site.kernel.trace.seq
    headers = {} if key is None else {"Authorization": key.format(key=site.key)}
    async with httpx2.AsyncClient(base_url=site.url, trust_env=False) as http:
        answer = await http.request(method, path, headers=headers, json={"call": "get_aid"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert site.key not in answer.text
    assert (site.kernel.trace.seq, len(site.kernel.processes)) == (before, 0)


async def test_health_needs_no_key_and_tells_only_which_start_this_is(site: Site) -> None:
    async with httpx2.AsyncClient(base_url=site.url, trust_env=False) as http:
        answer = await http.get("/healthz")
    assert answer.json() == {"ok": True, "boot": site.kernel.boot}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
async def test_only_json_is_read(site: Site, kind: str, status: int) -> None:
    async with site.http() as http:
        answer = await http.post(
            "/api/trap", content=b'{"call":"get_aid"}', headers={"Content-Type": kind}
        )
        assert answer.status_code == status
        down = await http.post("/api/down", content=b"{}", headers={"Content-Type": kind})
        assert down.status_code == status
    assert site.stopped.is_set() == (status == 200)


async def test_unknown_routes_and_methods(site: Site) -> None:
    async with site.http() as http:
        for path in ("/", "/api", "/api/", "/api/trap/", "/api/processes/x", "/api/processes/1/x"):
            assert (await http.get(path)).json()["error"]["code"] == "unknown_route", path
        for method, path in (("GET", "/api/trap"), ("DELETE", "/v1/models"), ("HEAD", "/healthz2")):
            answer = await http.request(method, path)
            assert answer.status_code == (404 if path == "/healthz2" else 405)
        assert (await http.get("/v1/nothing")).json()["error"] == {
            "message": "there is nothing at '/v1/nothing': GET /api/openapi.json lists all.",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_url",
        }


async def test_a_body_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path, body_bytes=1000) as site, site.http() as http:
        headers = {"Content-Type": "application/json"}
        exact = b'{"call":"get_aid"}'.ljust(1000)
        for size, status in ((exact, 200), (exact + b" ", 413), (b" " * 300_000, 413)):
            answer = await http.post("/api/trap", content=size, headers=headers)
            assert answer.status_code == status

        async def chunks():  # type: ignore[no-untyped-def]
            for _ in range(3):
                yield b" " * 400

        answer = await http.post("/api/trap", content=chunks(), headers=headers)
        assert answer.status_code == 413
        assert "1000" in answer.json()["error"]["message"]


async def test_sessions_are_processes_of_their_own(site: Site) -> None:
    async with site.http() as http:

        async def aid(session: str | None) -> int:
            headers = {} if session is None else {"X-Session-ID": session}
            answer = await http.post("/api/trap", json={"call": "get_aid"}, headers=headers)
            return int(answer.json()["aid"])

        assert await aid(None) == await aid(None)
        assert await aid("a") == await aid("a")
        assert len({await aid(None), await aid("a"), await aid("b")}) == 3
        long = await http.post(
            "/api/trap", json={"call": "get_aid"}, headers={"X-Session-ID": "x" * 201}
        )
        assert long.status_code == 422
