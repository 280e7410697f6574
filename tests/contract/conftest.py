"""Journals on a disk and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from journals import Disk


@pytest.fixture(params=["sqlite", "memory"])
async def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(request.param, tmp_path)
    yield disk
    await disk.close()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk("sqlite", tmp_path)
    yield disk
    await disk.close()
