"""/v1/embeddings, asked by OpenAI's own client and by hand."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Site, serving
from openai import AsyncOpenAI

from aios.testing import ScriptedEmbedder


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    embedder = ScriptedEmbedder("car automobile")
    async with serving(tmp_path, embedder=embedder, aliases={"ada": "scripted"}) as served:
        yield served


@pytest.fixture
async def client(site: Site) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        yield client


async def test_the_client_gets_vectors(client: AsyncOpenAI) -> None:
    made = await client.embeddings.create(model="scripted", input=["car", "a tree", "automobile"])
    assert (made.object, made.model, made.usage.prompt_tokens) == ("list", "scripted", 4)
    assert [(one.index, one.object) for one in made.data] == [(n, "embedding") for n in range(3)]
    first, second, third = (one.embedding for one in made.data)
    assert first == third != second
    assert len(first) == 65
    one = await client.embeddings.create(model="ada", input="car", encoding_format="float")
    assert one.data[0].embedding == first


async def test_base64_is_little_endian_float32(site: Site) -> None:
    async with site.http() as http:
        body: dict[str, Any] = {"model": "scripted", "input": "a car"}
        plain = (await http.post("/v1/embeddings", json=body)).json()
        packed = (
            await http.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
        ).json()
    text = packed["data"][0]["embedding"]
    assert list(struct.unpack("<65f", base64.b64decode(text))) == plain["data"][0]["embedding"]
    assert plain.keys() == {"object", "data", "model", "usage"}
    assert plain["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


@pytest.mark.parametrize(
    ("body", "status", "param", "sentence"),
    [
        ({"input": [1, 2, 3]}, 400, "input[0]", "input[0] is made of tokens: another model's"),
        ({"input": ["x", [1, 2]]}, 400, "input[1]", "input[1] is made of tokens"),
        ({"input": ""}, 400, "input", "input is empty: send a text."),
        ({"input": ["x", " "]}, 400, "input[1]", "input[1] is empty"),
        ({"input": []}, 400, "input", "input is []"),
        ({"input": None}, 400, "input", "input is null"),
        ({}, 400, None, "missing required field `input`"),
        ({"input": ["x"] * 2_049}, 400, "input", "length <= 2048"),
        ({"input": "x", "dimensions": 12}, 400, "dimensions", "the vectors of scripted have 65"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format", 'is "int8"'),
        ({"input": "x", "model": "gpt"}, 404, "model", "no embedder named 'gpt' here"),
    ],
)
async def test_what_does_not_fit_is_told_in_a_sentence(
    site: Site, body: dict[str, Any], status: int, param: str | None, sentence: str
) -> None:
    async with site.http() as http:
        reply = await http.post("/v1/embeddings", json={"model": "scripted", **body})
    assert reply.status_code == status
    error = reply.json()["error"]
    assert sentence in error["message"]
    assert error["param"] == param


async def test_without_an_embedder_the_client_is_told(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as site,
        AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="there is no embedder here"):
            await client.embeddings.create(model="scripted", input="x")
