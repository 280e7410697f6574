"""Every small example of the SDK runs as the kernel would start it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from served import Served, serving

from aios.testing import ScriptedCore

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, core=ScriptedCore()) as found:
        yield found


@pytest.mark.parametrize(
    ("example", "task", "result"),
    [
        ("hello.py", "rain", "You said: Write one sentence about rain."),
        ("tools.py", "1 and 1", "You said: 2 -> Sum(total=1)"),
        (
            "team.py",
            "tea",
            "You said: Write one sentence in praise of tea.\n"
            "You said: Write one sentence in criticism of tea.",
        ),
        ("plain.py", "", None),
    ],
)
async def test_example(example: str, task: str, result: str | None, served: Served) -> None:
    async with served.connect() as me:
        ended = await (await me.spawn(str(EXAMPLES / example), task)).wait(timeout_s=30)
        assert (ended.exit_status, ended.result) == (0, result)
