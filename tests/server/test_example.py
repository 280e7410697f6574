"""examples/openai_plain.py, run as it is against a server that has its model."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from conftest import serving

from aios.testing import ScriptedCore

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_plain.py"


async def run(url: str, key: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        env={**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_all_four_steps_are_well_formed(tmp_path: Path) -> None:
    async with serving(tmp_path, ScriptedCore(model="gpt-4o-mini")) as site:
        status, said = await run(site.url, site.key)
    assert status == 0, said
    assert "get_weather(" in said


async def test_it_fails_where_there_is_no_such_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        status, said = await run(site.url, site.key)
    assert status == 1
    assert "no model named 'gpt-4o-mini'" in said
