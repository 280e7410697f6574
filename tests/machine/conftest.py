"""What the tests with the real model share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios.config import Core, Paths
from aios.drivers.cores.worker.core import ENVIRONMENT
from aios.models import ModelStore


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model, pulled if it is not here; the engine's environment is set."""
    os.environ.update(ENVIRONMENT | os.environ)
    return ModelStore(Paths.find().models).ensure(Core().model).path
