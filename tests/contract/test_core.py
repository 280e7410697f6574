"""What every core does, the scripted one, the embedded one and Hugging Face's alike."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from aios.abi.messages import Message, Sampling, ToolSpec
from aios.config import Paths
from aios.drivers.cores.llama.core import LlamaCore
from aios.drivers.cores.transformers.core import TransformersCore
from aios.errors import ContextOverflow, InvalidCall
from aios.models import ModelStore
from aios.ports import Core, Prompt, Slice
from aios.testing import ScriptedCore

TEXT = "Once upon a time a robot learned to paint and everybody came to look at it."
WHOLE = Slice(64)


# one loop, since a core that takes half a minute to load serves all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        "scripted",
        pytest.param("llama", marks=pytest.mark.model),
        pytest.param("transformers", marks=[pytest.mark.model, pytest.mark.timeout(240)]),
    ],
)
async def loaded(request: pytest.FixtureRequest) -> AsyncIterator[Core]:
    core = CORES[request.param]()
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


def llama() -> Core:
    return LlamaCore(smollm(), "smollm2-135m", slots=4, threads=2, cells=4096, ram_bytes=64 << 20)


def transformers() -> Core:
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


def smollm() -> Path:
    return ModelStore(Paths.find().models).ensure("smollm2-135m").path


CORES: dict[str, Callable[[], Core]] = {
    "scripted": lambda: ScriptedCore([TEXT]),
    "llama": llama,
    "transformers": transformers,
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
    text, tokens, reason = await whole(core, asked)
    again = await core.admit(asked, tokens[:6])
    rest, more, why = await finish(core, again.sequence)
    assert tokens[:6] + more == tokens
    assert text.endswith(rest)
    assert why == reason


async def test_a_fork_and_its_origin_end_alike(core: Core) -> None:
    expected = await whole(core, prompt())
    sequence, text, tokens = await start(core, prompt())
    fork = await core.fork(sequence)
    for one in (fork, sequence):
        rest, more, reason = await finish(core, one)
        assert (text + rest, tokens + more, reason) == expected
        await core.release(one)


async def test_paging_changes_nothing(core: Core) -> None:
    expected = await whole(core, prompt())
    sequence, text, tokens = await start(core, prompt())
    out = await core.page_out(sequence)
    assert out.bytes > 0
    assert (await core.page_out(sequence)).bytes == 0
    assert (await core.page_in(sequence)).bytes == out.bytes
    await core.page_out(sequence)
    rest, more, reason = await finish(core, sequence)
    assert (text + rest, tokens + more, reason) == expected


async def test_a_frozen_sequence_thaws_exactly(core: Core, tmp_path: Path) -> None:
    expected = await whole(core, prompt())
    sequence, text, tokens = await start(core, prompt())
    path = tmp_path / "s.snapshot"
    frozen = await core.freeze(sequence, str(path))
    assert frozen.bytes == path.stat().st_size
    await core.release(sequence)
    thawed = await core.thaw(str(path))
    rest, more, reason = await finish(core, thawed.sequence)
    assert (text + rest, tokens + more, reason) == expected


async def test_a_damaged_snapshot_is_refused(core: Core, tmp_path: Path) -> None:
    sequence, _, _ = await start(core, prompt())
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
