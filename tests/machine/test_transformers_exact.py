"""The bits of a generation do not depend on what happens to it or beside it: logits compared.

All with a real model, SmolLM2-135M in float32, and with tiny ones of other architectures: windows,
capped scores, sinks, mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from aios.drivers.cores.transformers.engine import Engine
from aios.drivers.cores.transformers.start import load
from aios.ports import Prompt, Slice
from tests.machine.tiny_models import KINDS, Bits, Rig, engine, make, prompt

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
PROMPTS = {
    "short": prompt(1, 8),
    "a chunk and a short tail": prompt(2, 68, temperature=0.0),
    "chunks and a long tail": prompt(3, 150),
    "under a grammar": prompt(4, 40, schema=SCHEMA),
}
STEPS = 40


@pytest.fixture(scope="module", params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder = make(tmp_path_factory.mktemp("model"), request.param)
    return Rig(engine(folder))


@pytest.fixture(scope="module")
def alone(rig: Rig) -> dict[str, Bits]:
    """Every prompt by itself, by an engine that shares nothing."""
    return {name: by_itself(rig.engine, asked) for name, asked in PROMPTS.items()}


def by_itself(other: Engine, asked: Prompt) -> Bits:
    fresh = Engine(
        other.model, other.tokenizer, "m", slots=8, ram_bytes=0, share=False, deterministic=True
    )
    rig = Rig(fresh)
    fresh.admit(1, asked)
    return rig.finish(1)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("rig", "real"):
        if name in request.fixturenames:
            request.getfixturevalue(name).clear()


# --- tiny models of many kinds --------------------------------------------------------------------


def test_its_snapshots_are_exact_here(rig: Rig) -> None:
    assert rig.engine.abilities.exact_snapshots


def test_experts_are_never_packed(rig: Rig) -> None:
    """How many rows each gets follows from the tokens: what holds for some need not for others."""
    if hasattr(rig.engine.model.config, "num_experts_per_tok"):
        assert rig.engine._packed == frozenset()


def test_the_logits_are_the_models_own(rig: Rig) -> None:
    """Ours, chunk by chunk and row by row, against the library's own forward over all at once."""
    asked = prompt(5, 150)
    rig.engine.admit(1, asked)
    rig.finish(1)
    tokens = [*rig.engine._tokens(asked), *rig.made[1]]
    own = np.array([np.frombuffer(bits, np.float32) for _, bits in rig.bits[1]])
    model = rig.engine.model
    model.set_attn_implementation("eager")
    experts = getattr(model.config, "_experts_implementation", None)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0, -len(own) - 1 : -1].numpy()
    model.set_attn_implementation("aios")
    model.set_experts_implementation(experts)
    assert np.abs(own - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_batched(rig: Rig, alone: dict[str, Bits]) -> None:
    for number, name in enumerate(PROMPTS):
        rig.engine.admit(number, PROMPTS[name])
    rig.finish_all([*range(len(PROMPTS))])
    assert {name: rig.bits[number] for number, name in enumerate(PROMPTS)} == alone


@pytest.mark.parametrize("name", PROMPTS)
def test_in_slices_of_one_beside_strangers(rig: Rig, alone: dict[str, Bits], name: str) -> None:
    for stranger in (7, 8, 9):
        rig.engine.admit(stranger, prompt(stranger, 30 + stranger))
        rig.advance(stranger, 2)
        rig.engine.run(stranger, Slice(stranger))
    rig.engine.admit(1, PROMPTS[name])
    assert rig.finish(1, tokens=1) == alone[name]


def page_out(rig: Rig, _: Prompt, __: Path) -> int:
    assert rig.engine.page_out(1).bytes >= 0
    return 1


def freeze(rig: Rig, _: Prompt, folder: Path) -> int:
    rig.engine.freeze(1, folder / "frozen")
    rig.engine.release(1)
    rig.engine.thaw(2, folder / "frozen")
    return 2


def lose(rig: Rig, asked: Prompt, _: Path) -> int:
    rig.engine.release(1)
    rig.engine.admit(2, asked, rig.made[1])
    return 2


def fork(rig: Rig, _: Prompt, __: Path) -> int:
    rig.engine.fork(1, 2)
    return 2


INTERRUPTS = [page_out, freeze, lose, fork]


@pytest.mark.parametrize("made", [0, 1, 6])
@pytest.mark.parametrize("name", ["chunks and a long tail", "under a grammar"])
@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_interrupted(
    rig: Rig,
    alone: dict[str, Bits],
    tmp_path: Path,
    interrupt: Callable[[Rig, Prompt, Path], int],
    name: str,
    made: int,
) -> None:
    asked = PROMPTS[name]
    rig.engine.admit(1, asked)
    rig.advance(1, made)
    number = interrupt(rig, asked, tmp_path)
    rig.engine.admit(7, prompt(9, 70))
    rig.advance(7, 3)
    rig.engine.run(7, Slice(3))
    before = [] if number == 1 else rig.bits.get(1, [])
    assert before + rig.finish(number) == alone[name]
    if interrupt is fork:
        assert rig.finish(1) == alone[name]


def test_many_prompts_at_once(rig: Rig) -> None:
    """Chunks of every width, so many that some are packed together where that is exact."""
    asked = [prompt(n, length) for n, length in enumerate([70, 80, 90, 75, 100, 110, 20, 30, 140])]
    expected = [by_itself(rig.engine, one) for one in asked]
    for number, one in enumerate(asked):
        rig.engine.admit(number, one)
    rig.finish_all([*range(len(asked))])
    assert [rig.bits[number] for number in range(len(asked))] == expected


# --- where the cells are short --------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Room for two sequences at a time."""
    return Rig(engine(make(tmp_path_factory.mktemp("model"), "llama"), cells=512))


def test_pushed_out_by_others_again_and_again(narrow: Rig) -> None:
    asked = [prompt(n, 180 + n) for n in range(4)]
    expected = [by_itself(narrow.engine, one) for one in asked]
    for number, one in enumerate(asked):
        narrow.engine.admit(number, one)
    left, moved = set(range(4)), 0
    while left:
        for number in sorted(left):
            if narrow.slice(number, 2).finish_reason:
                left.discard(number)
            moved += narrow.engine.report().ram_used > 0
            assert narrow.engine.check() == []
    assert moved > 4
    assert [narrow.bits[number] for number in range(4)] == expected
    narrow.clear()


def test_the_first_in_line_goes_on_when_all_run(narrow: Rig) -> None:
    asked = [prompt(n, 180 + n) for n in range(4)]
    expected = [by_itself(narrow.engine, one) for one in asked]
    for number, one in enumerate(asked):
        narrow.engine.admit(number, one)
    narrow.finish_all([0, 1, 2, 3], tokens=3)
    assert [narrow.bits[number] for number in range(4)] == expected
    narrow.clear()


def test_recomputed_when_ram_is_full(tmp_path: Path) -> None:
    rig = Rig(engine(make(tmp_path, "mixtral"), ram_bytes=1000))
    asked = prompt(3, 150)
    expected = by_itself(rig.engine, asked)
    rig.engine.admit(1, asked)
    rig.advance(1, 9)
    assert rig.engine.page_out(1).bytes == 0
    assert rig.engine.report().cells_used == 0
    assert rig.finish(1) == expected


def test_a_full_ram_spills_to_disk(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    rig = Rig(
        engine(make(tmp_path / "m", "llama"), ram_bytes=1000, disk=str(folder), disk_bytes=1 << 20)
    )
    asked = prompt(3, 150)
    expected = by_itself(rig.engine, asked)
    rig.engine.admit(1, asked)
    rig.advance(1, 4)
    moved = rig.engine.page_out(1).bytes
    assert rig.engine.report().disk_used == moved > 0
    assert rig.finish(1) == expected
    assert rig.engine.report().disk_used == 0
    # a file that is damaged costs a recompute
    rig.engine.admit(2, asked)
    rig.advance(2, 4)
    rig.engine.page_out(2)
    (file,) = folder.iterdir()
    file.write_bytes(b"x" * moved)
    assert rig.finish(2) == expected
    rig.engine.close()


# --- what is shared -------------------------------------------------------------------------------


def test_a_shared_prompt_is_computed_once(tmp_path: Path) -> None:
    rig = Rig(engine(make(tmp_path, "llama")))
    asked = prompt(6, 190)
    computed = 0
    for number in (1, 2, 3):
        rig.engine.admit(number, asked)
        rig.engine.run(number, Slice(1))
    left = {1, 2, 3}
    while left:
        for number, result in rig.engine.turn():
            assert not isinstance(result, Exception)
            computed += result.prefilled
            if result.tokens:
                left.discard(number)
            else:
                rig.engine.run(number, Slice(1))
    length = rig.engine.admit(4, asked).prompt_tokens
    tail = length % 64
    assert computed == length + 2 * tail
    assert rig.engine.admit(5, asked).cached_tokens == length - tail
    assert rig.bits[1] == rig.bits[2] == rig.bits[3]


def test_forks_share_their_tensors_until_one_writes(tmp_path: Path) -> None:
    rig = Rig(engine(make(tmp_path, "llama")))
    rig.engine.admit(1, prompt(1, 100))
    rig.advance(1, 2)
    used = rig.engine.report().cells_used
    for twin in (2, 3):
        rig.engine.fork(1, twin)
    assert rig.engine.report().cells_used == used
    rig.advance(2, 1)  # the first to write goes on in place
    assert rig.engine.report().cells_used == used
    rig.advance(3, 1)
    assert rig.engine.report().cells_used > used
    assert rig.engine.check() == []
    rig.finish_all([1, 2, 3])
    assert rig.made[1][2:] == rig.made[2] == rig.made[3]


def test_kept_chunks_make_way_for_what_is_paged_out(tmp_path: Path) -> None:
    folder = make(tmp_path, "llama")
    size = engine(folder).residency.cells.token_bytes
    rig = Rig(engine(folder, ram_bytes=64 * 5 * size))
    for number in range(3):
        rig.engine.admit(number, prompt(number, 150 + 40 * number))
        rig.advance(number, 1)
    assert rig.engine.residency.prefixes.size == 64 * 5 * size
    moved = rig.engine.page_out(2).bytes
    assert moved > 64 * 3 * size
    assert rig.engine.residency.prefixes.size == 64 * size
    assert rig.engine.check() == []


# --- the real model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(model_path: Path) -> Rig:
    found: Engine = load(
        source=str(model_path.parent),
        name="m",
        threads=1,
        device="cpu",
        dtype="float32",
        gguf_file=model_path.name,
        slots=4,
        ram_bytes=64 << 20,
    )
    return Rig(found)


@pytest.fixture(scope="module")
def uninterrupted(real: Rig) -> Bits:
    return by_itself(real.engine, prompt(1, 60, new=STEPS))


@pytest.mark.model
@pytest.mark.timeout(240)
def test_restored_at_every_step(real: Rig, uninterrupted: Bits, tmp_path: Path) -> None:
    """Each token by another life of the sequence: by turns thawed, paged, recomputed and forked."""
    asked = prompt(1, 60, new=STEPS)
    real.engine.admit(1, asked)
    real.advance(1, 1)
    bits, made, now = real.bits[1], real.made[1], 1
    for step in range(2, STEPS + 1):
        kind = step % 4 if step > 5 else 0
        if kind == 1:
            real.engine.page_out(now)
            old = now
        elif kind == 2 and step % 8 == 2:  # recomputes all of them: not each time
            real.engine.admit(step, asked, made)
            old, now = now, step
        elif kind == 3:
            real.engine.fork(now, step)
            old, now = now, step
        else:
            real.engine.freeze(now, tmp_path / "frozen")
            real.engine.thaw(step, tmp_path / "frozen")
            old, now = now, step
        if old != now:
            real.engine.release(old)
            real.bits[now], real.made[now] = bits, made
        while len(made) < step:
            real.slice(now, 1)
        assert bits == uninterrupted[:step], f"step {step}"
    assert real.engine.check() == []


@pytest.mark.model
@pytest.mark.timeout(240)
def test_batched_equals_alone(real: Rig, uninterrupted: Bits) -> None:
    """Its own chunks packed with those of others, and its tokens beside theirs."""
    for number in (2, 3, 4):
        real.engine.admit(number, prompt(number, 60 + number, new=8 * number))
    real.engine.admit(9, prompt(1, 60, new=STEPS))
    widths = {real.engine.residency.sequences[number].width for number in (2, 3, 4, 9)}
    assert len(widths) == 1
    real.finish_all([2, 3, 4, 9], tokens=7)
    assert real.bits[9] == uninterrupted


@pytest.mark.model
@pytest.mark.timeout(240)
def test_the_padding_is_what_makes_it_so(real: Rig, uninterrupted: Bits) -> None:
    """Without it the bits do depend on who else is there, on this machine's libraries at least."""
    fresh = Engine(
        real.engine.model, real.engine.tokenizer, "m", slots=4, ram_bytes=0, deterministic=False
    )
    assert not fresh.abilities.exact_snapshots
    rig = Rig(fresh)
    fresh.admit(9, prompt(1, 60, new=8))
    assert rig.finish(9) != uninterrupted[:8]
    assert len(rig.made[9]) == 8
