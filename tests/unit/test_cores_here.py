"""Which models that are here are cores of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from aios.abi.calls import CoreSpec
from aios.config import Config
from aios.drivers.cores.configured import ConfiguredCores, key_of
from aios.errors import Conflict, CoreRefused, SetupError
from aios.models import ModelFile, ModelStore
from aios.testing import FakeClock


class Store(ModelStore):
    """With these models, and no files."""

    def __init__(self, *models: ModelFile) -> None:
        super().__init__(Path("nowhere"))
        self.models = [*models]

    def list(self) -> list[ModelFile]:
        return self.models


def model(name: str) -> ModelFile:
    return ModelFile(
        name=name,
        sha256="",
        source_sha256="",
        licence="",
        source="",
        bytes=1,
        context=1,
        created_at=0.0,
        path=Path(f"{name}.gguf"),
    )


def test_a_model_that_the_embedded_core_cannot_run_is_no_core_by_itself() -> None:
    windowed = structs.replace(model("windowed"), embedded=False)
    cores = ConfiguredCores(Store(model("plain"), windowed), Config(), FakeClock())
    assert [facts.name for facts in cores.facts()] == [cores.default, "plain"]
    with pytest.raises(Conflict):
        cores.add("plain", CoreSpec(kind="transformers", model="nowhere"))
    cores.add("windowed", CoreSpec(kind="transformers", model="nowhere", gguf_file="windowed.gguf"))
    assert [(facts.name, facts.kind) for facts in cores.facts()] == [
        (cores.default, "embedded"),
        ("windowed", "transformers"),
        ("plain", "embedded"),
    ]


def test_a_description_that_cannot_be_is_told_at_the_start() -> None:
    config = Config(cores={"box": CoreSpec(model="m")})
    with pytest.raises(SetupError, match=r"config\.toml, \[cores\.box\]: .*address of its server"):
        ConfiguredCores(Store(), config, FakeClock())


def test_a_key_comes_from_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring
    from keyring.backend import KeyringBackend

    class Ring(KeyringBackend):
        priority = 1.0

        def get_password(self, service: str, username: str) -> str | None:
            return {"work": "from-the-ring"}.get(username) if service == "aios" else None

        def set_password(self, service: str, username: str, password: str) -> None: ...

        def delete_password(self, service: str, username: str) -> None: ...

    before = keyring.get_keyring()
    keyring.set_keyring(Ring())
    try:
        assert key_of("box", CoreSpec(keyring="work")) == "from-the-ring"
        with pytest.raises(CoreRefused, match="no key 'home'"):
            key_of("box", CoreSpec(keyring="home"))
    finally:
        keyring.set_keyring(before)
    monkeypatch.setenv("BOX_KEY", "from-the-environment")
    assert key_of("box", CoreSpec(key_env="BOX_KEY")) == "from-the-environment"
    monkeypatch.delenv("BOX_KEY")
    with pytest.raises(CoreRefused, match="BOX_KEY"):
        key_of("box", CoreSpec(key_env="BOX_KEY"))
    assert key_of("box", CoreSpec()) is None
