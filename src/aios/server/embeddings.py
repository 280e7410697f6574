"""OpenAI's embeddings: what comes in, what goes out, and the one call between them."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aios.abi.calls import Embed, Embedding
from aios.server import questions
from aios.server.failures import BadField

INPUTS = 2_048  # texts in one request


class EmbeddingRequest(Struct, frozen=True):
    """``POST /v1/embeddings``."""

    model: Annotated[str, Meta(min_length=1, max_length=500)]
    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class EmbeddingData(Struct, frozen=True):
    """embedding is base64 of little-endian float32 if that was asked for."""

    index: int
    embedding: tuple[float, ...] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct, frozen=True):
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


_requests = msgspec.json.Decoder(EmbeddingRequest)


def read(body: bytes) -> EmbeddingRequest:
    return questions.fit(body, _requests)


def embed(request: EmbeddingRequest) -> Embed:
    """The system call that a request asks for."""
    texts: list[str] = []
    given = [request.input] if isinstance(request.input, str) else request.input
    for index, text in enumerate(given):
        where = "input" if isinstance(request.input, str) else f"input[{index}]"
        if not isinstance(text, str):
            raise BadField(
                f"{where} is made of tokens: another model's tokens mean nothing to the embedder "
                "here, so send texts.",
                where,
            )
        if not text.strip():
            raise BadField(f"{where} is empty: send a text.", where)
        texts.append(text)
    return Embed(texts=tuple(texts), model=request.model)


def answer(request: EmbeddingRequest, made: Embedding) -> Embeddings:
    size = len(made.vectors[0])
    if request.dimensions not in (None, size):
        raise BadField(
            f"dimensions is {request.dimensions}, and the vectors of {made.model} have {size}: "
            "leave it out.",
            "dimensions",
        )
    packed = request.encoding_format == "base64"
    return Embeddings(
        data=[
            EmbeddingData(index, _packed(vector) if packed else vector)
            for index, vector in enumerate(made.vectors)
        ],
        model=made.model,
        usage=EmbeddingUsage(made.tokens, made.tokens),
    )


def _packed(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
