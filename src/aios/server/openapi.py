"""The OpenAPI document of all routes, derived from the types that the routes decode and encode."""

from __future__ import annotations

from typing import Any

import msgspec

from aios.abi import wire
from aios.abi.calls import CALLS, Generate, GenRestore, Processes, Status, Transcript
from aios.abi.messages import Delta
from aios.server import chat, embeddings


class ErrorReport(msgspec.Struct, frozen=True):
    code: str
    message: str
    retryable: bool


class Failed(msgspec.Struct, frozen=True):
    """Our own error body; under /v1 it is OpenAI's."""

    error: ErrorReport


def document(version: str) -> bytes:
    """OpenAPI 3.1 as JSON."""
    replies = sorted({call.reply for call in CALLS.values()}, key=lambda reply: reply.__name__)
    data = (Delta, Failed, chat.ErrorBody, chat.ChatRequest, chat.Completion, chat.Chunk)
    vectors = (embeddings.EmbeddingRequest, embeddings.Embeddings)
    types = [*CALLS.values(), *replies, *data, *vectors, chat.Models, chat.Model]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    any_call = _one_of(*CALLS.values())
    paths = {
        "/api/trap": {"post": _route("Make a system call.", _one_of(*replies), body=any_call)},
        "/api/stream": {
            "post": _route(
                "Generate; answers with delta events, then one reply or error event.",
                {"type": "string"},
                body=_one_of(Generate, GenRestore),
                kind="text/event-stream",
            )
        },
        "/api/events": {
            "get": _route(
                "What happened, as server-sent events; resumable by Last-Event-ID, 410 if too old.",
                {"type": "string"},
                query={
                    "after": "integer",
                    "aid": "integer",
                    "follow": "boolean",
                    "limit": "integer",
                },
                kind="text/event-stream",
            )
        },
        "/api/processes": {
            "get": _route("Processes.", _one_of(Processes), query={"all": "boolean"})
        },
        "/api/processes/{aid}": {"get": _route("One process.", _one_of(Status), path="aid")},
        "/api/processes/{aid}/calls": {
            "get": _route("Its calls with their contents.", _one_of(Transcript), path="aid")
        },
        "/api/status": {"get": _route("The kernel at a glance.", {"type": "object"})},
        "/api/doctor": {"get": _route("What is wrong, if anything.", {"type": "object"})},
        "/api/down": {"post": _route("Stop the daemon.", {"type": "object"})},
        "/v1/chat/completions": {
            "post": _route(
                "A chat completion; with stream, chunks as server-sent events.",
                _one_of(chat.Completion),
                body=_one_of(chat.ChatRequest),
                error=chat.ErrorBody,
            )
        },
        "/v1/embeddings": {
            "post": _route(
                "Vectors of texts, by the local embedder.",
                _one_of(embeddings.Embeddings),
                body=_one_of(embeddings.EmbeddingRequest),
                error=chat.ErrorBody,
            )
        },
        "/v1/models": {"get": _route("All models.", _one_of(chat.Models), error=chat.ErrorBody)},
        "/v1/models/{model}": {
            "get": _route("One model.", _one_of(chat.Model), path="model", error=chat.ErrorBody)
        },
    }
    return wire.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "aios", "version": version},
            "security": [{"key": []}],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _one_of(*types: type) -> dict[str, Any]:
    refs = [{"$ref": f"#/components/schemas/{one.__name__}"} for one in types]
    return refs[0] if len(refs) == 1 else {"oneOf": refs}


def _route(
    summary: str,
    reply: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    path: str | None = None,
    query: dict[str, str] | None = None,
    kind: str = "application/json",
    error: type = Failed,
) -> dict[str, Any]:
    route: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": {kind: {"schema": reply}}},
            "default": {
                "description": "Refused or failed; the message says why.",
                "content": {"application/json": {"schema": _one_of(error)}},
            },
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": {"type": of}} for name, of in (query or {}).items()
    ]
    if path is not None:
        of = "integer" if path == "aid" else "string"
        parameters.append({"name": path, "in": "path", "required": True, "schema": {"type": of}})
    if parameters:
        route["parameters"] = parameters
    if body is not None:
        route["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return route
