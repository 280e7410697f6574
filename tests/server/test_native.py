"""Our own API: calls, streams, events, pages; and clients that go away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
from conftest import Site, serving

from aios.abi import wire
from aios.abi.calls import CALLS, Generate, SpawnAgent
from aios.drivers.journal.memory import MemoryJournal
from aios.testing import ScriptedCore, user

GENERATE = {"call": "generate", "messages": [{"role": "user", "content": "one two three"}]}


async def lines(response: httpx2.Response) -> list[tuple[str, Any]]:
    """The events of a finished stream as (name, data)."""
    found = []
    for block in (await response.aread()).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def test_a_call_and_its_reply(site: Site) -> None:
    async with site.http() as http:
        answer = await http.post("/api/trap", json={"call": "get_aid"})
        assert (answer.status_code, answer.json()) == (200, {"aid": 1})
        assert answer.headers["content-type"] == "application/json"
        said = await http.post("/api/trap", json=GENERATE)
        assert said.json()["message"]["content"] == "You said: one two three"


async def test_errors_keep_their_status_and_code(site: Site) -> None:
    async with site.http() as http:
        for call, status, code in (
            ({"call": "get_status", "aid": 99}, 404, "not_found"),
            ({"call": "generate", "messages": []}, 422, "invalid_call"),
            ({**GENERATE, "model": "nobody"}, 404, "not_found"),
            ({**GENERATE, "messages": [{"role": "user", "content": "x " * 9000}]}, 413, None),
        ):
            answer = await http.post("/api/trap", json=call)
            assert answer.status_code == status
            assert answer.json()["error"]["code"] == (code or "context_overflow")


async def test_a_stream_tells_each_slice_then_the_reply(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(80))
    async with serving(tmp_path, ScriptedCore([text])) as site, site.http() as http:
        response = await http.post("/api/stream", json=GENERATE)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = await lines(response)
    *deltas, (name, reply) = events
    assert name == "reply"
    assert {name for name, _ in deltas} == {"delta"}
    assert len(deltas) == 3  # slices of 32 tokens
    assert "".join(delta.get("text", "") for _, delta in deltas) == text
    assert reply["message"]["content"] == text


async def test_a_stream_that_fails_at_once_is_a_plain_error(site: Site) -> None:
    async with site.http() as http:
        for call, status in (
            ({**GENERATE, "model": "nobody"}, 404),
            ({"call": "gen_restore", "snapshot": "none"}, 404),
            ({"call": "get_aid"}, 422),
        ):
            answer = await http.post("/api/stream", json=call)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/json"


async def test_a_stream_that_fails_later_ends_in_an_error_event(gated: Site) -> None:
    async with gated.http() as http:
        aid = (await http.post("/api/trap", json={"call": "get_aid"})).json()["aid"]
        async with http.stream("POST", "/api/stream", json=GENERATE) as response:
            await gated.kernel.processes.kill(gated.kernel.processes.find(aid), "enough")
            assert response.status_code == 200  # a heartbeat had opened it
            events = await lines(response)
    assert [name for name, _ in events] == ["error"]
    assert events[0][1]["error"]["code"] == "killed"


async def test_silence_is_filled_with_comments(gated: Site) -> None:
    async with gated.http() as http, http.stream("POST", "/api/stream", json=GENERATE) as response:
        seen = b""
        async for chunk in response.aiter_raw():
            seen += chunk
            if seen == b":\n\n" * 3:
                gated.core.step()
        assert b"event: reply" in seen


@pytest.mark.parametrize("path", ["/api/trap", "/api/stream"])
async def test_a_client_that_goes_away_takes_its_call_along(gated: Site, path: str) -> None:
    body = json.dumps(GENERATE)
    _, writer = await asyncio.open_connection("127.0.0.1", gated.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {gated.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await gated.until(lambda: gated.open_calls() == ["generate"])
    writer.close()
    await gated.until(lambda: gated.open_calls() == [])
    await gated.until_core_is_free()
    assert await gated.kernel.check() == []


async def test_a_waiting_call_is_cancelled_with_its_client(site: Site) -> None:
    async with site.http() as http:
        waiting = asyncio.ensure_future(http.post("/api/trap", json={"call": "recv_message"}))
        await site.until(lambda: site.open_calls() == ["recv_message"])
        waiting.cancel()
        await site.until(lambda: site.open_calls() == [])


async def test_events_are_numbered_and_resumable(site: Site) -> None:
    async with site.http() as http:
        for _ in range(3):
            await http.post("/api/trap", json=GENERATE)
        everything = await http.get("/api/events")
        numbers = [
            int(line.removeprefix("id: "))
            for line in everything.text.splitlines()
            if line.startswith("id: ")
        ]
        assert numbers == sorted(set(numbers))
        for one in await lines(everything):
            assert wire.decode_event(json.dumps(one[1])).seq in numbers
        middle = numbers[len(numbers) // 2]
        rest = await http.get("/api/events", headers={"Last-Event-ID": str(middle)})
        assert f"id: {middle + 1}\n" in rest.text
        assert f"id: {middle}\n" not in rest.text
        assert rest.text == (await http.get("/api/events", params={"after": str(middle)})).text
        few = await http.get("/api/events", params={"after": str(middle), "limit": "2"})
        assert len(await lines(few)) == 2


async def test_a_follower_is_let_in_at_once_and_sees_what_comes(site: Site) -> None:
    async with site.http() as http:
        await http.post("/api/trap", json={"call": "get_aid"})
        query = {"after": str(site.kernel.trace.seq), "follow": "true", "limit": "2"}
        async with http.stream("GET", "/api/events", params=query) as response:
            assert response.status_code == 200
            await http.post("/api/trap", json=GENERATE)
            names = [name for name, _ in await lines(response)]
    assert names[0] == "call_started"
    assert len(names) == 2


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "limit=0", "follow=maybe", "aid=one", "after=9" + "9" * 40]
)
async def test_bad_event_queries(site: Site, query: str) -> None:
    async with site.http() as http:
        answer = await http.get(f"/api/events?{query}")
    assert answer.status_code == 422


class Forgetful(MemoryJournal):
    """A journal that keeps no event before the fifth."""

    async def first_seq(self) -> int:
        return 5


async def test_events_no_longer_kept_are_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, journal=Forgetful()) as site, site.http() as http:
        for query in ({"after": "2"}, {"after": "2", "follow": "true"}):
            answer = await http.get("/api/events", params=query)
            assert answer.status_code == 410
            assert answer.json()["error"]["code"] == "pruned"
            assert "the first is 5" in answer.json()["error"]["message"]
        for after in ("0", "4"):
            assert (await http.get("/api/events", params={"after": after})).status_code == 200


async def test_events_of_a_process_that_is_not_ours(site: Site) -> None:
    login = site.kernel.identify(site.key)
    child = await site.kernel.trap(login, SpawnAgent(program="child"))
    async with site.http() as http:
        own = {"Authorization": f"Bearer {child.key}"}  # type: ignore[attr-defined]
        assert (await http.get(f"/api/events?aid={login}", headers=own)).status_code == 404
        mine = await http.get(f"/api/events?aid={child.aid}", headers=own)  # type: ignore[attr-defined]
        assert (await lines(mine))[0][0] == "process_created"


async def test_pages_of_processes(site: Site) -> None:
    async with site.http() as http:
        await http.post("/api/trap", json=GENERATE)
        listed = (await http.get("/api/processes")).json()["processes"]
        assert [process["aid"] for process in listed] == [1]
        assert (await http.get("/api/processes/1")).json()["program"] == "login"
        calls = (await http.get("/api/processes/1/calls")).json()["calls"]
        assert "generate" in [call["name"] for call in calls]
        assert (await http.get("/api/processes/99")).status_code == 404


async def test_a_process_key_may_not_stop_the_machine(site: Site) -> None:
    login = site.kernel.identify(site.key)
    spawned = await site.kernel.trap(login, SpawnAgent(program="child"))
    async with site.http() as http:
        own = {"Authorization": f"Bearer {spawned.key}"}  # type: ignore[attr-defined]
        assert (await http.post("/api/down", json={}, headers=own)).status_code == 403
        assert (await http.get("/api/doctor", headers=own)).status_code == 403
        assert (await http.get("/api/status", headers=own)).status_code == 200
        assert not site.stopped.is_set()
        assert (await http.post("/api/down", json={})).json() == {"stopping": True}
        assert site.stopped.is_set()


async def test_the_document_describes_every_call_and_is_sound(site: Site) -> None:
    async with site.http() as http:
        document = (await http.get("/api/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert {call.__name__ for call in CALLS.values()} <= set(schemas)

    def refs(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [ref for item in value.values() for ref in refs(item)]
        return [ref for item in value for ref in refs(item)] if isinstance(value, list) else []

    assert {ref.rsplit("/", 1)[1] for ref in refs(document)} <= set(schemas)
    call = Generate(messages=user("hello"))
    jsonschema.validate(
        json.loads(wire.encode(call)),
        {"$ref": "#/components/schemas/Generate", "components": document["components"]},
    )


async def test_stopping_answers_everybody(tmp_path: Path) -> None:
    async with serving(tmp_path, ScriptedCore(gated=True)) as site, site.http() as http:
        plain = asyncio.ensure_future(http.post("/api/trap", json={"call": "recv_message"}))
        early = asyncio.ensure_future(http.post("/api/stream", json=GENERATE))
        late = http.stream("GET", "/api/events", params={"follow": "true"})
        response = await late.__aenter__()
        await site.until(lambda: sorted(site.open_calls()) == ["generate", "recv_message"])
        site.app.close()
        assert (await plain).status_code == 503
        answer = await early
        assert answer.status_code in (200, 503)
        assert "stopping" in answer.text
        assert (await lines(response))[-1][0] == "error"
        await late.__aexit__(None, None, None)
        assert (await http.get("/api/status")).status_code == 503


async def test_a_call_that_does_not_fit_says_where_the_calls_are_described(site: Site) -> None:
    async with site.http() as http:
        answer = await http.post("/api/trap", json={"call": "frobnicate"})
        assert answer.status_code == 422
        message = answer.json()["error"]["message"]
        assert "'frobnicate'" in message
        assert "/api/openapi.json" in message
