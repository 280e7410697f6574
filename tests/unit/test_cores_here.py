"""Which models that are here are cores of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from aios.abi.calls import CoreSpec
from aios.config import Config
from aios.drivers.cores.configured import ConfiguredCores
from aios.errors import Conflict
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
