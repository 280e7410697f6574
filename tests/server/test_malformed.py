"""Bytes that are no good request: one answer each, nothing hangs, nothing is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import Site, serving

from aios.server import listener

BAD_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"NONSENSE\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/trap HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nhello",
    b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://[bad/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


@pytest.mark.parametrize("data", BAD_HTTP)
async def test_bad_http_is_400(site: Site, data: bytes) -> None:
    assert (await site.raw(data)).startswith(b"HTTP/1.1 400 ")


async def test_an_upgrade_is_not_taken(site: Site) -> None:
    answer = await site.raw(
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\n"
        b"Upgrade: websocket\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_head_without_end_is_cut_off(site: Site) -> None:
    filler = b"X: " + b"x" * 1000 + b"\r\n"
    answer = await site.raw(b"GET / HTTP/1.1\r\n" + filler * (listener.HEAD_BYTES // 1000 + 1))
    assert answer == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HT",
        b"POST /api/trap HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    ],
)
async def test_a_request_that_does_not_arrive_is_given_up(tmp_path: Path, data: bytes) -> None:
    async with serving(tmp_path, arrival_s=0.05) as site:
        assert await site.raw(data.replace(b"{key}", site.key.encode())) == b""
        assert site.open_calls() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"get_aid"',
        b"{}",
        b'{"call":7}',
        b'{"call":"get_aid"}{}',
        b'{"call":"drop_tables"}',
        b'{"call":"get_status","aid":"seven"}',
        b'{"call":"get_status","aid":1e400}',
        b'{"call":"\xff\xfe"}',
        b'{"call":"get_aid","timeout_s":NaN}',
        b'{"call":"tool_call","name":"x","arguments":' + b"[" * 100_000,
        b'{"call":"send_message","to":1,"body":' + b"[" * 500 + b"]" * 500 + b"}",
    ],
)
async def test_bad_calls_are_told_in_a_sentence(site: Site, body: bytes) -> None:
    async with site.http() as http:
        for path in ("/api/trap", "/api/stream"):
            answer = await http.post(
                path, content=body, headers={"Content-Type": "application/json"}
            )
            error = answer.json()["error"]
            assert answer.status_code == 422
            assert error["code"] == "invalid_call"
            assert not error["retryable"]
            assert len(error["message"]) < 300
    assert site.open_calls() == []


async def test_deep_but_harmless_text_is_no_nesting(site: Site) -> None:
    text = '[{"' * 300
    async with site.http() as http:
        await http.post("/api/trap", json={"call": "send_message", "to": 1, "body": text})
        answer = await http.post("/api/trap", json={"call": "recv_message"})
        assert answer.json()["body"] == text


async def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {site.key}\r\n"
    answers = await site.raw(
        f"GET /v1/models HTTP/1.1\r\n{head}\r\n"
        f"GET /healthz HTTP/1.1\r\n{head}\r\n"
        f"GET /api/nothing HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode()
    )
    places = [answers.index(part) for part in (b'"list"', b'"ok":true', b"unknown_route")]
    assert places == sorted(places)


async def test_a_flood_of_connections_leaves_the_server_well(site: Site) -> None:
    await asyncio.gather(*(site.raw(b"NONSENSE\r\n\r\n") for _ in range(100)))
    async with site.http() as http:
        assert (await http.get("/api/doctor")).json() == {"problems": []}
