"""``python -m aios.sdk.launch TARGET``: be the OS process of an agent.

TARGET is a Python file, a module, or ``module:function``. The kernel that started us put its
address, our key and the task into the environment (AIOS_URL, AIOS_KEY, AIOS_TASK).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from aios.errors import AiosError, NotFound
from aios.sdk.agent import Agent
from aios.sdk.connection import connect


def load(target: str) -> Agent:
    """The agent that *target* names; NotFound if there is none, or more than one."""
    file = Path(target)
    name, _, attribute = target.partition(":")
    if file.suffix == ".py":
        module, attribute = _run_file(file), ""
    else:
        module = importlib.import_module(name)
    agents = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Agent) and value.function.__module__ == module.__name__
    }
    if attribute:
        agents = {name: value for name, value in agents.items() if name == attribute}
    if len(agents) != 1:
        found = f"has {len(agents)}: {', '.join(agents)}" if agents else "has none"
        raise NotFound(f"{target} must hold one function under @aios.agent, and {found}.")
    return next(iter(agents.values()))


def _run_file(file: Path) -> ModuleType:
    # as `python file.py` would: its folder comes first, so that it finds its neighbours
    sys.path[0] = str(file.absolute().parent)
    spec = importlib.util.spec_from_file_location(f"agent_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise NotFound(f"there is no program at {file}: check the path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


async def live(target: str, task: str) -> str:
    async with connect() as me:
        try:
            agent = load(target)
        except Exception as error:
            await me.fail(error)
            raise
        return await agent.live(me, task)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m aios.sdk.launch FILE_OR_MODULE[:FUNCTION]\n")
        return 2
    try:
        result = asyncio.run(live(arguments[0], os.environ.get("AIOS_TASK", "")))
    except AiosError as error:  # said in a sentence by whoever raised it
        sys.stderr.write(f"{error.message}\n")
        return 1
    except Exception:  # noqa: BLE001 (a program's own failure, shown whole in its log)
        traceback.print_exc()
        return 1
    sys.stdout.write(f"{result}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
