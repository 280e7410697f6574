"""What every core does, the scripted one and all that speak to a model alike.

What a core says in its abilities that it cannot do is not asked of it: bits that are the same again
(exact_snapshots), going on from a part of an answer (preemptible). Without the bits, an answer that
was interrupted still goes on after what was shown, and has the length that was asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from aios.abi.messages import Message, Sampling, ToolSpec
from aios.config import Paths
from aios.drivers.clock import SystemClock
from aios.drivers.cores.gate import Gate
from aios.drivers.cores.llama.core import LlamaCore
from aios.drivers.cores.openai.core import OpenAICore
from aios.drivers.cores.transformers.core import TransformersCore
from aios.drivers.cores.worker.core import ENVIRONMENT
from aios.errors import Conflict, ContextOverflow, CoreFailed, InvalidCall
from aios.models import ModelStore
from aios.ports import Core, Prompt, Slice
from aios.testing import FaultyServer, ScriptedCore

TEXT = "Once upon a time a robot learned to paint and everybody came to look at it."
WHOLE = Slice(64)


@contextmanager
def llama_server() -> Iterator[str]:
    """llama.cpp's own server in a process of its own: its address."""
    file = ModelStore(Paths.find().models).ensure("smollm2-135m")
    command = [sys.executable, Path(__file__).with_name("llama_server.py"), file.path]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**ENVIRONMENT, **os.environ},
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().decode().strip() + "/v1"
        finally:
            process.kill()  # asked to end, it would wait for connections that we may hold


def openai(url: str, model: str) -> OpenAICore:
    return OpenAICore(url, model, "remote", gate=Gate("test", SystemClock()))


# one loop, since a core that takes half a minute to load serves all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        "scripted",
        pytest.param("llama", marks=pytest.mark.model),
        pytest.param("transformers", marks=[pytest.mark.model, pytest.mark.timeout(240)]),
        "server that goes on",
        "server that does not",
        pytest.param("llama server", marks=pytest.mark.model),
    ],
)
async def loaded(request: pytest.FixtureRequest) -> AsyncIterator[Core]:
    async with AsyncExitStack() as stack:
        core = await CORES[request.param](stack)
        await core.start()
        yield core
        await core.close()


@pytest_asyncio.fixture(loop_scope="module")
async def core(loaded: Core) -> AsyncIterator[Core]:
    """A core that holds no sequence."""
    first = (await loaded.admit(prompt())).sequence
    await loaded.release(first)
    yield loaded
    last = (await loaded.admit(prompt())).sequence
    for sequence in range(first, last + 1):
        await loaded.release(sequence)


Open = AsyncExitStack  # what a core needs for as long as it is tested


async def scripted(stack: Open) -> Core:
    return ScriptedCore([TEXT])


async def llama(stack: Open) -> Core:
    return LlamaCore(smollm(), "smollm2-135m", slots=4, threads=2, cells=4096, ram_bytes=64 << 20)


async def transformers(stack: Open) -> Core:
    """The weights of the same file, as Hugging Face's library reads them."""
    return TransformersCore(
        str(smollm().parent),
        "smollm2-135m",
        slots=4,
        threads=1,
        device="cpu",
        dtype="float32",
        gguf_file=smollm().name,
        ram_bytes=64 << 20,
    )


TOKEN_S = 0.02  # so that an answer has not arrived whole when it is interrupted


async def server_that_goes_on(stack: Open) -> Core:
    server = FaultyServer([TEXT], kind="vllm", token_s=TOKEN_S)
    return openai((await stack.enter_async_context(server)).url, "scripted")


async def server_that_does_not(stack: Open) -> Core:
    server = FaultyServer([TEXT], kind="unknown", token_s=TOKEN_S)
    return openai((await stack.enter_async_context(server)).url, "scripted")


async def llama_cpp_server(stack: Open) -> Core:
    return openai(stack.enter_context(llama_server()), "")


def smollm() -> Path:
    return ModelStore(Paths.find().models).ensure("smollm2-135m").path


CORES: dict[str, Callable[[Open], Awaitable[Core]]] = {
    "scripted": scripted,
    "llama": llama,
    "transformers": transformers,
    "server that goes on": server_that_goes_on,
    "server that does not": server_that_does_not,
    "llama server": llama_cpp_server,
}


def prompt(text: str = "Tell me a story.", **fields: object) -> Prompt:
    sampling = Sampling(seed=7, max_tokens=16)
    wanted = {"messages": (Message("user", text),), "sampling": sampling, **fields}
    return Prompt(**wanted)  # type: ignore[arg-type]


async def finish(core: Core, sequence: int, grant: Slice = WHOLE) -> tuple[str, list[int], str]:
    """Its rest: text, tokens, why it ended."""
    text, tokens = "", []
    for _ in range(100):
        result = await core.run(sequence, grant)
        text += result.text
        tokens += result.tokens
        assert len(result.tokens) <= grant.decode_tokens
        if result.finish_reason:
            return text, tokens, result.finish_reason
    raise AssertionError("100 slices were not enough")


async def start(core: Core, asked: Prompt, at_least: int = 3) -> tuple[int, str, list[int]]:
    """Admit and run until a few tokens are made."""
    admitted = await core.admit(asked)
    text, tokens = "", []
    while len(tokens) < at_least:
        result = await core.run(admitted.sequence, Slice(at_least))
        assert result.finish_reason is None
        text += result.text
        tokens += result.tokens
    return admitted.sequence, text, tokens


async def whole(core: Core, asked: Prompt) -> tuple[str, list[int], str]:
    admitted = await core.admit(asked)
    done = await finish(core, admitted.sequence)
    await core.release(admitted.sequence)
    return done


Done = tuple[str, list[int], str]


def assert_alike(core: Core, done: Done, expected: Done, shown: str) -> None:
    """The same again; without exact snapshots, an answer that goes on after what was shown."""
    if core.abilities.exact_snapshots:
        assert done == expected
        return
    text, tokens, reason = done
    assert text.startswith(shown)
    assert len(text) > len(shown)
    assert (len(tokens), reason) == (len(expected[1]), expected[2])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_slices_of_any_size_give_the_same_text(core: Core, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=5, max_tokens=12, ignore_end=True)
    asked = prompt(sampling=sampling)
    text, tokens, reason = await whole(core, asked)
    assert (len(tokens), reason) == (12, "length")
    admitted = await core.admit(asked)
    assert admitted.prompt_tokens > 0
    assert await finish(core, admitted.sequence, Slice(5)) == (text, tokens, reason)


async def test_max_tokens_is_held_by_the_window(core: Core) -> None:
    admitted = await core.admit(prompt(sampling=Sampling(seed=1, max_tokens=10**6)))
    assert admitted.max_tokens + admitted.prompt_tokens <= core.abilities.context_tokens
    await core.release(admitted.sequence)
    for too_few in (0, -3):
        with pytest.raises(InvalidCall, match="max_tokens"):
            await core.admit(prompt(sampling=Sampling(seed=1, max_tokens=too_few)))


async def test_a_prompt_longer_than_the_window_is_refused(core: Core) -> None:
    with pytest.raises(ContextOverflow, match=str(core.abilities.context_tokens)):
        await core.admit(prompt("word " * (core.abilities.context_tokens + 10)))


async def test_a_prompt_is_measured_as_it_is_admitted(core: Core) -> None:
    tool = ToolSpec("look", "Look into a book.")
    for asked in (prompt(), prompt(tools=(tool,)), prompt(tools=(tool,), tool_choice="none")):
        measured = await core.measure(asked)
        admitted = await core.admit(asked)
        assert admitted.prompt_tokens == measured
        await core.release(admitted.sequence)
    assert (await core.residency()).sequences == 0


async def test_any_length_can_be_measured(core: Core) -> None:
    window = core.abilities.context_tokens
    assert await core.measure(prompt("word " * (window + 10))) > window
    longer = (Message("user", "One."), Message("assistant", "Two."), Message("user", "Three."))
    lengths = [await core.measure(prompt(messages=longer[:count])) for count in (1, 2, 3)]
    assert lengths == sorted(set(lengths))


async def test_what_was_made_is_admitted_again_and_goes_on_the_same(core: Core) -> None:
    asked = prompt()
    expected = await whole(core, asked)
    sequence, text, tokens = await start(core, asked, at_least=6)
    await core.release(sequence)
    if not core.abilities.preemptible:
        with pytest.raises(CoreFailed, match="cannot go on"):
            await core.admit(asked, tokens, text)
        return
    again = await core.admit(asked, tokens, text)
    rest, more, why = await finish(core, again.sequence)
    assert_alike(core, (text + rest, tokens + more, why), expected, text)


async def test_a_fork_and_its_origin_end_alike(core: Core) -> None:
    expected = await whole(core, prompt())
    sequence, text, tokens = await start(core, prompt())
    if core.abilities.preemptible:
        ends = [await core.fork(sequence), sequence]
    else:
        with pytest.raises(Conflict, match="forked"):
            await core.fork(sequence)
        ends = [sequence]
    for one in ends:
        rest, more, reason = await finish(core, one)
        assert_alike(core, (text + rest, tokens + more, reason), expected, text)
        await core.release(one)


async def test_a_fork_of_what_has_not_begun_ends_alike(core: Core) -> None:
    expected = await whole(core, prompt())
    admitted = await core.admit(prompt())
    fork = await core.fork(admitted.sequence)
    for one in (fork, admitted.sequence):
        assert_alike(core, await finish(core, one), expected, "")
        await core.release(one)


async def test_paging_changes_nothing(core: Core) -> None:
    expected = await whole(core, prompt())
    sequence, text, tokens = await start(core, prompt())
    out = await core.page_out(sequence)
    assert (out.bytes > 0) == core.abilities.exact_snapshots  # what is not exact moves nothing
    assert (await core.page_out(sequence)).bytes == 0
    assert (await core.page_in(sequence)).bytes == out.bytes
    await core.page_out(sequence)
    rest, more, reason = await finish(core, sequence)
    assert_alike(core, (text + rest, tokens + more, reason), expected, text)


async def test_a_frozen_sequence_thaws_exactly(core: Core, tmp_path: Path) -> None:
    expected = await whole(core, prompt())
    path = tmp_path / "s.snapshot"
    if core.abilities.preemptible:
        sequence, text, tokens = await start(core, prompt())
    else:
        sequence, text, tokens = await start(core, prompt())
        with pytest.raises(Conflict, match="frozen"):
            await core.freeze(sequence, str(path))
        assert not path.exists()
        await core.release(sequence)
        sequence, text, tokens = (await core.admit(prompt())).sequence, "", []
    frozen = await core.freeze(sequence, str(path))
    assert frozen.bytes == path.stat().st_size
    await core.release(sequence)
    thawed = await core.thaw(str(path))
    rest, more, reason = await finish(core, thawed.sequence)
    assert_alike(core, (text + rest, tokens + more, reason), expected, text)


async def test_a_damaged_snapshot_is_refused(core: Core, tmp_path: Path) -> None:
    if core.abilities.preemptible:
        sequence, _, _ = await start(core, prompt())
    else:
        sequence = (await core.admit(prompt())).sequence
    path = tmp_path / "s.snapshot"
    await core.freeze(sequence, str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidCall):
        await core.thaw(str(path))
    with pytest.raises(InvalidCall):
        await core.thaw(str(tmp_path / "nothing.snapshot"))


async def test_a_cancelled_sequence_ends_and_a_released_one_is_gone(core: Core) -> None:
    sequence, _, _ = await start(core, prompt())
    await core.cancel(sequence)
    assert (await core.run(sequence, WHOLE)).finish_reason == "cancelled"
    await core.release(sequence)
    await core.release(sequence)
    assert (await core.residency()).sequences == 0


async def test_a_stop_text_ends_the_answer_before_it(core: Core) -> None:
    text, _, _ = await whole(core, prompt())
    words = text.split()
    stop = f" {words[3]}"
    cut, _, reason = await whole(
        core, prompt(sampling=Sampling(seed=7, max_tokens=16, stop=(stop,)))
    )
    assert cut == text[: text.index(stop)]
    assert reason == "stop"


SEARCH = prompt(sampling=Sampling(seed=7, max_tokens=16, beams=4))


async def test_a_beam_search_does_not_depend_on_what_happens_to_it(
    core: Core, tmp_path: Path
) -> None:
    if core.abilities.beams < 4:
        pytest.skip("this core does no beam search")
    expected = await whole(core, SEARCH)
    admitted = await core.admit(SEARCH)
    sequence, made, said, reason = admitted.sequence, [], "", None
    path = str(tmp_path / "search")
    while reason is None:
        result = await core.run(sequence, Slice(3))
        assert len(result.tokens) <= 3
        made += result.tokens
        said += result.text
        reason = result.finish_reason
        await core.page_out(sequence)
        if reason is None and len(made) % 2:
            await core.freeze(sequence, path)
            await core.release(sequence)
            sequence = (await core.thaw(path)).sequence
        elif reason is None and result.tokens:
            await core.release(sequence)
            sequence = (await core.admit(SEARCH, made, said)).sequence
    assert (said, made, reason) == expected
    await core.release(sequence)
    assert (await core.residency()).cells_used == 0


async def test_one_beam_is_greedy(core: Core) -> None:
    greedy = await whole(core, prompt())
    assert greedy == await whole(core, prompt(sampling=Sampling(seed=7, max_tokens=16, beams=1)))


async def test_what_a_beam_search_shows_is_a_prefix_of_its_answer(core: Core) -> None:
    if core.abilities.beams < 4:
        pytest.skip("this core does no beam search")
    text, _, _ = await whole(core, SEARCH)
    fork = (await core.admit(SEARCH)).sequence
    said = ""
    for _ in range(5):
        result = await core.run(fork, Slice(8))
        said += result.text
        assert text.startswith(said)
    await core.release(fork)


async def test_a_schema_is_kept(core: Core) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    text, _, reason = await whole(core, prompt("Give a number as JSON.", schema=schema))
    assert 1 <= json.loads(text)["n"] <= 9
    assert reason == "stop"


async def test_a_forced_tool_is_called(core: Core) -> None:
    tool = ToolSpec(
        "set_light",
        "Switch a light.",
        {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    )
    admitted = await core.admit(
        prompt(
            "Switch it on.",
            tools=(tool,),
            tool_choice="required",
            sampling=Sampling(seed=7, max_tokens=48),
        )
    )
    calls = ()
    while True:
        result = await core.run(admitted.sequence, WHOLE)
        calls += result.tool_calls
        if result.finish_reason:
            break
    assert result.finish_reason == "tool_calls"
    assert [call.name for call in calls] == ["set_light"]
    assert isinstance(json.loads(calls[0].arguments)["on"], bool)
