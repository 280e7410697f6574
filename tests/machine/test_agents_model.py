"""The five agents, all at once, on the embedded model."""

import ast
import asyncio
from pathlib import Path

import pytest
from served import serving

from aios import agents
from aios.config import Config, Paths
from aios.drivers.clock import SystemClock
from aios.drivers.cores.configured import ConfiguredCores
from aios.models import ModelStore
from aios.sdk import launch


@pytest.mark.model
@pytest.mark.timeout(180)
async def test_the_five_agents_finish_and_their_answers_have_the_right_shape(
    tmp_path: Path,
) -> None:
    cores = ConfiguredCores(ModelStore(Paths.find().models), Config(), SystemClock())
    async with serving(tmp_path, cores=cores) as served:
        found = {name: launch.load(f"aios.agents.{name}") for name in agents.DEMO}
        told = await asyncio.gather(
            *(
                found[name].run(task, url=served.url, key=served.key)
                for name, task in agents.DEMO.items()
            )
        )
        result = dict(zip(found, told, strict=True))
        async with served.connect() as me:
            calls = {p.program: p.usage.slices for p in await me.processes(all=True)}
    assert ast.parse(result["coding"].partition("\n\n")[0])
    assert "=" in result["math"]
    assert len(result["narrative"]) > 20
    assert result["rec"].partition(":")[0] in agents.DEMO["rec"]
    assert result["travel"].count("\nDay 1, ") == 3
    assert all(calls[name] >= 2 for name in agents.DEMO)
