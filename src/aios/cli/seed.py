"""`python main.py`: the paper's agents at once on one model, as the program of March 2024 ran them.

    python main.py --llm_name gemma-2b-it --max_gpu_memory '{"0": "24GB"}' --eval_device "cuda:0" \
        --max_new_tokens 256

It has a kernel of its own in a folder of its own, and leaves neither behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import tomlkit

from aios.abi.calls import Exit, Generate, Generation, Spawned, WaitAgent
from aios.abi.messages import Message, Sampling
from aios.cli import exits, machine, session
from aios.cli.core import memory_map
from aios.cli.model import fetch_if_missing
from aios.cli.run import spawning
from aios.config import Paths
from aios.errors import AiosError, InvalidCall
from aios.models import ModelStore
from aios.sdk import programs

TASKS: Mapping[str, str] = {
    "math": "A pizza has 8 slices, and Albert eats 2 pizzas. How many slices does Albert eat?",
    "narrative": "a valiant warrior who looks for the treasures of a mystical island",
    "rec": "A tour of New York in spring: museums, parks, restaurants, theatres",
}
LOAD_S = 3_600.0  # a large model comes over the network, once


class Given(argparse.Namespace):
    """The command line."""

    llm_name: str
    max_gpu_memory: str
    eval_device: str
    max_new_tokens: int
    dtype: str
    quantization: str
    tasks: list[str]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InvalidCall(f"{message.rstrip('.')}; `python main.py --help` shows all options.")


def parser() -> Parser:
    made = Parser(prog="main.py", description="The paper's agents at once on one model.")
    made.add_argument(
        "--llm_name", default="gemma-2b-it", help="a short name, repository or folder"
    )
    made.add_argument("--max_gpu_memory", default="", help='of each GPU: {"0": "24GB"}')
    made.add_argument("--eval_device", default="auto", help="cuda:0, cpu; auto: what there is")
    made.add_argument("--max_new_tokens", type=int, default=256, help="of one answer")
    made.add_argument("--dtype", default="auto", help="float32, bfloat16, float16")
    made.add_argument("--quantization", default="", choices=("", "4bit", "8bit"))
    made.add_argument(
        "tasks", nargs="*", metavar="AGENT:TASK", help="else one each for math, narrative and rec"
    )
    return made


def tasks_of(words: Sequence[str]) -> list[tuple[str, str]]:
    """(agent, task) of each word; InvalidCall for an agent that there is not."""
    found = []
    for word in words:
        agent, colon, task = word.partition(":")
        if not colon or agent not in programs.BUILT_IN or not task.strip():
            known = ", ".join(programs.BUILT_IN)
            raise InvalidCall(f"{word!r} is no task: write AGENT:TASK, with one of {known}.")
        found.append((agent, task.strip()))
    return found or [*TASKS.items()]


def settings(given: Given) -> tomlkit.TOMLDocument:
    """The config.toml of the kernel; InvalidCall for a value that cannot be."""
    if given.max_new_tokens < 1:
        raise InvalidCall(f"--max_new_tokens is {given.max_new_tokens}: give at least 1.")
    document = tomlkit.document()
    document["kernel"] = {"max_new_tokens": given.max_new_tokens}
    memory = memory_map(given.max_gpu_memory)
    if is_embedded(given.llm_name):
        if given.eval_device not in ("auto", "cpu") or memory or given.quantization:
            raise InvalidCall(
                f"{given.llm_name} runs on the embedded core, which uses the CPU alone: leave out "
                "--max_gpu_memory and --quantization, and --eval_device or give cpu."
            )
        document["core"] = {"model": given.llm_name}
        return document
    from aios.drivers.cores.transformers.names import source_of

    name = f"llm/{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(given.llm_name).name)}"[:100]
    document["core"] = {"model": name}
    core = {
        "kind": "transformers",
        "model": source_of(given.llm_name),
        "device": given.eval_device,
        "max_memory": memory,
        "dtype": given.dtype,
        "quantization": given.quantization,
    }
    document["cores"] = {name: core}
    return document


def is_embedded(name: str) -> bool:
    """Whether the embedded core runs it: a model that is here, or in the catalogue."""
    store = ModelStore(Paths.find().models)
    return name in store.catalogue or name in [model.name for model in store.list()]


@contextmanager
def kernel_of_our_own(document: tomlkit.TOMLDocument) -> Iterator[None]:
    """A kernel with these settings for as long as the block lasts, and nothing after it."""
    models = Paths.find().models  # what was pulled before is used
    home = tempfile.mkdtemp(prefix="aios-")
    before = dict(os.environ)
    try:
        for name in [name for name in os.environ if name.startswith("AIOS_")]:
            del os.environ[name]
        os.environ["AIOS_HOME"], os.environ["AIOS_MODELS"] = home, str(models)
        os.environ["TMPDIR"] = f"{home}/tmp"  # what libraries leave there goes with it
        os.mkdir(os.environ["TMPDIR"])
        paths = Paths.find()
        paths.make()
        paths.config_file.write_text(tomlkit.dumps(document))
        daemon = machine.start(["--no-tcp"])
        try:
            yield
        finally:
            machine.stop(daemon)
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(home, ignore_errors=True)


async def load(kernel: session.Session) -> str:
    """Have the model loaded, before any agent waits for it; its name."""
    call = Generate(
        messages=(Message("user", "Hello"),),
        context=None,
        sampling=Sampling(max_tokens=1),
        timeout_s=LOAD_S,
    )
    return (await kernel.call(call, Generation)).model


async def run(kernel: session.Session, tasks: Sequence[tuple[str, str]]) -> int:
    """All the agents at once; how many failed."""
    agents = []
    for agent, task in tasks:
        spawned = await kernel.call(spawning(programs.find(agent), task=task), Spawned)
        agents.append((spawned.aid, agent))
        print(f"process {spawned.aid} is {agent}: {task}", flush=True)

    async def end(aid: int, agent: str) -> bool:
        ended = await kernel.call(WaitAgent(aid=aid), Exit)
        is_good = ended.exit_status == 0
        said = ended.result if is_good else f"failed with {ended.exit_status}: {ended.reason}"
        print(f"{agent}: {said}", flush=True)
        return is_good

    return (await asyncio.gather(*(end(*agent) for agent in agents))).count(False)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all agents answered, 1 when one failed, 2 when it cannot be run."""
    signal.signal(signal.SIGTERM, _interrupt)  # ended like this, too, nothing is left behind
    try:
        given = parser().parse_args(arguments, namespace=Given())
        tasks = tasks_of(given.tasks)
        document = settings(given)
        if is_embedded(given.llm_name):
            fetch_if_missing(given.llm_name)
        with kernel_of_our_own(document):
            print(f"loading {given.llm_name} ...", flush=True)
            session.use(load)
            failed = session.use(lambda kernel: run(kernel, tasks))
    except AiosError as error:
        print(f"main.py: {error.message}", file=sys.stderr)
        return exits.USAGE.code
    except KeyboardInterrupt:
        return exits.INTERRUPTED.code
    return exits.FAILED.code if failed else exits.OK.code
