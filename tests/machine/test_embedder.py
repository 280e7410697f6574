"""The real embedder: its graph, its vectors, and memory that finds by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aios.abi import calls as abi
from aios.config import Paths
from aios.drivers.embedder.minilm import DIMENSIONS, MiniLM
from aios.errors import ContextOverflow, DriverError, NotFound
from aios.models import EmbedderStore
from aios.ports import Embedded, EmbedderFiles
from aios.testing import machine

pytestmark = pytest.mark.model


@pytest.fixture(scope="session")
def files() -> EmbedderFiles:
    """The embedder, installed if it is not here."""
    try:
        return EmbedderStore(Paths.find().embedder).install()
    except DriverError as error:
        pytest.skip(f"the embedder's weights cannot be had here: {error.message}")


@pytest.fixture
async def embedder(files: EmbedderFiles) -> AsyncIterator[MiniLM]:
    embedder = MiniLM(lambda: files)
    yield embedder
    await embedder.close()


def matrix(made: Embedded) -> Any:
    return np.array([np.frombuffer(vector, "<f4") for vector in made.vectors])


async def test_vectors_are_those_of_the_published_model(embedder: MiniLM) -> None:
    """The cosines of its weights at full precision, computed in numpy: 0.660, 0.071, 0.073."""
    texts = ["A cat sits on the mat", "A kitten rests on a rug", "Stock prices fell"]
    made = await embedder.embed(texts)
    vectors = matrix(made)
    assert vectors.shape == (3, DIMENSIONS)
    assert made.tokens == 15
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    cosines = vectors @ vectors.T
    np.testing.assert_allclose(cosines[0, 1:], [0.660, 0.071], atol=0.03)
    np.testing.assert_allclose(cosines[1, 2], 0.073, atol=0.03)


async def test_a_batch_gives_nearly_what_single_texts_give(embedder: MiniLM) -> None:
    """Nearly: in 8 bits a vector depends a little on its batch (0.98), which no search notices."""
    texts = [f"{word} {word} in the garden" * n for n, word in enumerate(("a", "rose", "sun"), 1)]
    together = matrix(await embedder.embed(texts, background=True))
    alone = np.vstack([matrix(await embedder.embed([text])) for text in texts])
    assert ((together * alone).sum(1) > 0.97).all()


async def test_all_of_a_long_text_counts(embedder: MiniLM) -> None:
    filler = "The committee met again and agreed on nothing in particular. " * 60
    plain, with_end, end = matrix(
        await embedder.embed([filler, filler + "Penguins swim. " * 300, "Penguins swim."])
    )
    assert with_end @ end > plain @ end + 0.2
    with pytest.raises(ContextOverflow, match="text 1 has 8,193 tokens, and .* reads 8,192"):
        await embedder.embed(["x", "word " * 8_193])


async def test_files_that_are_damaged(files: EmbedderFiles, tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"nothing")
    embedder = MiniLM(lambda: msgspec.structs.replace(files, graph=str(broken)))
    with pytest.raises(DriverError, match="cannot be loaded .* `aios embed install`"):
        await embedder.embed(["x"])
    await embedder.close()


async def test_while_it_is_not_installed_it_says_so_and_then_it_is_there(
    files: EmbedderFiles,
) -> None:
    here: list[EmbedderFiles] = []
    embedder = MiniLM(lambda: here[0] if here else None)
    assert embedder.model is None
    with pytest.raises(NotFound, match="is not installed .`aios embed install` gets it"):
        await embedder.embed(["x"])
    here.append(files)
    assert embedder.model == files.model
    assert embedder.missing == ""
    assert len((await embedder.embed(["x"])).vectors) == 1
    await embedder.close()


async def test_memory_finds_what_was_meant(embedder: MiniLM) -> None:
    async with machine(embedder=embedder) as kernel:
        login = kernel.identify(kernel.user_key)
        for text in (
            "The ferry to the islands leaves at noon from the old harbour.",
            "Ann prefers tea to coffee.",
            "The dentist is booked for Tuesday.",
        ):
            await kernel.trap(login, abi.MemWrite(text=text, scope="user"))
        async with asyncio.timeout(30):
            while True:
                hits = await kernel.trap(login, abi.MemSearch(query="when does my boat depart?"))
                assert isinstance(hits, abi.MemoryHits)
                if not hits.note:
                    break
        assert hits.hits[0].record.id == "m1"
        assert hits.hits[0].why.startswith("meaning: 0.")
        assert hits.hits[0].words == 0.0
