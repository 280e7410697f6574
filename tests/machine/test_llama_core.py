"""LlamaCore and its worker process: lives, deaths, errors."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.llama.core import LlamaCore
from aios.errors import CoreFailed, InvalidCall, SetupError
from aios.ports import Prompt, Slice

pytestmark = pytest.mark.model


def embedded(path: Path, **options: int) -> LlamaCore:
    settings = {"slots": 8, "threads": 2, "cells": 4096, "ram_bytes": 64 << 20} | options
    return LlamaCore(path, "m", **settings)


def prompt(number: int = 1, new: int = 24) -> Prompt:
    sampling = Sampling(temperature=0.7, max_tokens=new, seed=number, ignore_end=True)
    return Prompt((Message("user", f"Tell me a story about the number {number}."),), sampling)


async def generate(core: LlamaCore, asked: Prompt, made: list[int], halfway: asyncio.Event) -> str:
    """To its end, as the kernel does it: what a dead worker made is admitted again."""
    text = ""
    while True:
        try:
            admitted = await core.admit(asked, made)
            while True:
                result = await core.run(admitted.sequence, Slice(4))
                text += result.text
                made += result.tokens
                if len(made) >= 8:
                    halfway.set()
                if result.finish_reason:
                    await core.release(admitted.sequence)
                    return text
        except CoreFailed:
            assert halfway.is_set()


@pytest.fixture
async def core(model_path: Path) -> AsyncIterator[LlamaCore]:
    core = embedded(model_path)
    await core.start()
    yield core
    await core.close()


async def test_a_killed_worker_changes_no_text(core: LlamaCore) -> None:
    prompts = [prompt(number) for number in range(8)]
    whole = [await generate(core, asked, [], asyncio.Event()) for asked in prompts]
    halfway = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(generate(core, asked, [], halfway)) for asked in prompts]
        await halfway.wait()
        assert core.os_pid is not None
        os.kill(core.os_pid, signal.SIGKILL)
    assert [task.result() for task in running] == whole
    assert core.restarts == 1
    assert (await core.residency()).cells_used == 0
    assert await core.check() == []


async def test_a_dead_worker_fails_every_call_and_its_sequences_are_gone(core: LlamaCore) -> None:
    first, second = await core.admit(prompt(new=500)), await core.admit(prompt(2, new=500))
    runs = [
        asyncio.create_task(core.run(admitted.sequence, Slice(500))) for admitted in (first, second)
    ]
    await core.residency()  # the grants have been read by now
    assert core.os_pid is not None
    os.kill(core.os_pid, signal.SIGKILL)
    for run in runs:
        with pytest.raises(CoreFailed, match=r"^the worker of m ended by signal 9\.$"):
            await run
    assert core.os_pid is None
    with pytest.raises(CoreFailed, match="admit its prompt again"):
        await core.run(first.sequence, Slice(1))
    await core.release(first.sequence)
    assert (await core.admit(prompt())).sequence not in (first.sequence, second.sequence)


async def test_a_worker_that_keeps_dying_is_given_up(model_path: Path) -> None:
    core = embedded(model_path, max_restarts=1)
    await core.start()
    for _ in range(2):
        admitted = await core.admit(prompt(new=500))
        run = asyncio.create_task(core.run(admitted.sequence, Slice(500)))
        await core.residency()
        assert core.os_pid is not None
        os.kill(core.os_pid, signal.SIGKILL)
        with pytest.raises(CoreFailed):
            await run
    with pytest.raises(CoreFailed, match="given up"):
        await core.admit(prompt())
    await core.close()


def damage(whole: bytes, folder: Path) -> list[Path]:
    """Files that are no models any more."""
    ways = {
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:2000],
        "scrambled": whole[:200] + b"\xff" * 5000 + whole[5200:],
        "not a model": b"PK\x03\x04" + whole[:1000],
        "empty": b"",
    }
    for name, data in ways.items():
        (folder / f"{name}.gguf").write_bytes(data)
    return sorted(folder.glob("*.gguf"))


@pytest.fixture
def damaged(model_path: Path, tmp_path: Path) -> list[Path]:
    return damage(model_path.read_bytes(), tmp_path)


async def test_a_damaged_model_is_one_sentence(damaged: list[Path], tmp_path: Path) -> None:
    assert len(damaged) == 5
    for file in damaged:
        core = embedded(file)
        with pytest.raises(SetupError, match=r"^[^\n]*\.$") as caught:
            await core.start()
        assert str(file) in caught.value.message
        await core.close()
    missing = embedded(tmp_path / "nothing.gguf")
    with pytest.raises(SetupError, match="there is no model file"):
        await missing.start()
    await missing.close()


async def test_a_cancelled_run_ends_at_once(core: LlamaCore) -> None:
    admitted = await core.admit(prompt(new=2000))
    assert (await core.run(admitted.sequence, Slice(1))).prefilled == admitted.prompt_tokens
    run = asyncio.create_task(core.run(admitted.sequence, Slice(2000)))
    await core.residency()
    await core.cancel(admitted.sequence)
    result = await run
    assert result.finish_reason == "cancelled"
    assert len(result.tokens) < 2000

    await core.release(admitted.sequence)
    again = await core.admit(prompt(new=2000))
    run = asyncio.create_task(core.run(again.sequence, Slice(2000)))
    await core.residency()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await core.release(again.sequence)
    left = await core.residency()
    assert (left.sequences, left.cells_used) == (0, 0)


async def test_one_run_per_sequence(core: LlamaCore) -> None:
    admitted = await core.admit(prompt(new=2000))
    await core.run(admitted.sequence, Slice(1))  # the prompt
    run = asyncio.create_task(core.run(admitted.sequence, Slice(2000)))
    await core.residency()
    with pytest.raises(InvalidCall, match="already"):
        await core.run(admitted.sequence, Slice(1))
    with pytest.raises(InvalidCall, match="holds a slice"):
        await core.page_out(admitted.sequence)
    await core.cancel(admitted.sequence)
    await run


async def test_a_bad_schema_and_bad_limits_are_one_sentence(core: LlamaCore) -> None:
    for schema in ({"type": "nonsense"}, {"$ref": "#/nowhere"}, {"pattern": "(", "type": "string"}):
        with pytest.raises(InvalidCall, match=r"^the JSON schema is not valid: [^\n]+\.$"):
            await core.admit(Prompt((Message("user", "hi"),), Sampling(), schema=schema))
    assert (await core.residency()).sequences == 0


async def test_log_probabilities(core: LlamaCore) -> None:
    asked = Prompt((Message("user", "hi"),), Sampling(max_tokens=3, logprobs=2, ignore_end=True))
    admitted = await core.admit(asked)
    found = ()
    while len(found) < 3:
        found += (await core.run(admitted.sequence, Slice(3))).logprobs
    for one in found:
        assert one.logprob < 0
        assert one.top[0] == (one.text, one.logprob)  # greedy: the likeliest was chosen
        assert one.top[1][1] <= one.logprob


async def made(core: LlamaCore, asked: Prompt, begun: tuple[int, ...] = ()) -> tuple[int, ...]:
    """All tokens of the answer, those that it began with among them."""
    admitted = await core.admit(asked, begun)
    tokens = begun + await rest(core, admitted.sequence)
    await core.release(admitted.sequence)
    return tokens


async def rest(core: LlamaCore, sequence: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while True:
        result = await core.run(sequence, Slice(64))
        tokens += result.tokens
        if result.finish_reason:
            return tokens


def biased(*bias: tuple[int, float], **sampling: Any) -> Prompt:
    wanted = {"max_tokens": 6, "ignore_end": True, **sampling}
    return Prompt((Message("user", "Name a colour."),), Sampling(logit_bias=bias, **wanted))


async def test_a_bias_keeps_the_likeliest_token_away_or_forces_another(core: LlamaCore) -> None:
    plain = await made(core, biased())
    away = await made(core, biased((plain[0], -100.0)))
    assert plain[0] not in away
    other = away[0]
    assert await made(core, biased((other, 100.0))) == (other,) * 6
    assert await made(core, biased((other, 100.0), temperature=1.0, seed=3)) == (other,) * 6
    assert await made(core, biased()) == plain


async def test_a_biased_answer_goes_on_exactly_from_a_snapshot(
    core: LlamaCore, tmp_path: Path
) -> None:
    plain = await made(core, biased(temperature=1.0, seed=5, max_tokens=12))
    asked = biased((plain[8], -100.0), temperature=1.0, seed=5, max_tokens=12)
    whole = await made(core, asked)
    assert whole[:8] == plain[:8]
    assert whole[8] != plain[8]  # after the snapshot, so a bias that was lost there would show
    admitted = await core.admit(asked)
    begun: tuple[int, ...] = ()
    while len(begun) < 4:
        begun += (await core.run(admitted.sequence, Slice(4 - len(begun)))).tokens
    await core.freeze(admitted.sequence, str(tmp_path / "snapshot"))
    await core.release(admitted.sequence)
    thawed = await core.thaw(str(tmp_path / "snapshot"))
    assert begun + await rest(core, thawed.sequence) == whole
    assert await made(core, asked, begun) == whole


async def test_the_grammar_wins_over_a_bias(core: LlamaCore) -> None:
    schema = {"type": "string", "enum": ["red", "blue"]}
    free = structs.replace(biased(max_tokens=12), schema=schema)
    plain = await made(core, free)
    stranger = (await made(core, biased()))[0]
    assert stranger not in plain
    pushed = structs.replace(biased((stranger, 100.0), max_tokens=12), schema=schema)
    assert await made(core, pushed) == plain


async def test_a_bias_of_an_unknown_token_is_one_sentence(core: LlamaCore) -> None:
    with pytest.raises(InvalidCall, match=r"^logit_bias names the token 999999, but those of m "):
        await core.admit(biased((999_999, 1.0)))
    assert (await core.residency()).sequences == 0


async def test_a_closed_core_is_closed(model_path: Path) -> None:
    core = embedded(model_path)
    await core.start()
    worker = core.os_pid
    assert worker is not None
    await core.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with pytest.raises(CoreFailed, match="closed"):
        await core.admit(prompt())


PARENT = """
import asyncio, sys
from pathlib import Path
from aios.drivers.cores.llama.core import LlamaCore

async def main():
    core = LlamaCore(Path(sys.argv[1]), "m", slots=1, threads=1, cells=512, ram_bytes=0)
    await core.start()
    print(core.os_pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="waits on a pidfd")
def test_the_worker_dies_with_its_parent(model_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model_path)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        worker = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        ended, _, _ = select.select([worker], [], [], 10)
        os.close(worker)
    assert ended


def test_importing_the_core_is_light() -> None:
    heavy = "numpy", "jinja2", "llguidance", "xllamacpp", "gguf"
    code = (
        "import sys, aios.drivers.cores.llama.core;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
