"""Beam search by the transformers engine: the library's own answer, whatever happens to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.text.beams import unpack
from aios.errors import InvalidCall
from aios.ports import Prompt, Slice
from tests.machine.tiny_models import Bits, Rig, engine, make, prompt

NEW = 16


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(engine(make(tmp_path_factory.mktemp("model"), "llama")))


@pytest.fixture(autouse=True)
def clean(rig: Rig) -> Iterator[None]:
    yield
    rig.clear()


def search(length: int = 150, beams: int = 4, **fields: Any) -> Prompt:
    sampling = Sampling(beams=beams, max_tokens=NEW, seed=1, **fields)
    return Prompt(prompt(1, length).messages, sampling)


@pytest.fixture(scope="module")
def alone(rig: Rig) -> tuple[Bits, list[int], str]:
    rig.engine.admit(1, search())
    found = rig.finish(1), rig.made[1], rig.text[1]
    rig.clear()
    return found


@pytest.mark.parametrize(("length", "beams"), [(5, 2), (70, 3), (150, 4), (40, 8)])
def test_it_finds_what_generate_finds(rig: Rig, length: int, beams: int) -> None:
    asked = search(length, beams)
    tokens = torch.tensor([rig.engine._tokens(asked)])
    model = rig.engine.model
    model.set_attn_implementation("eager")
    theirs = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        num_beams=beams,
        max_new_tokens=NEW,
        do_sample=False,
        early_stopping=False,
    )[0, tokens.shape[1] :].tolist()
    model.set_attn_implementation("aios")
    rig.engine.admit(1, asked)
    rig.finish(1)
    ours = rig.engine.residency.sequences[1].made
    assert ours == theirs
    # greedy says something else, else this shows nothing
    rig.engine.admit(2, Prompt(asked.messages, Sampling(max_tokens=NEW, seed=1)))
    rig.finish(2)
    assert rig.made[2] != ours


def test_every_hypothesis_is_paid_for(rig: Rig, alone: tuple[Bits, list[int], str]) -> None:
    _, made, _ = alone
    steps, rest = unpack(made)
    assert rest == []
    assert len(steps) == NEW
    assert {len(step) for step in steps[1:]} >= {4}


def test_beside_others(rig: Rig, alone: tuple[Bits, list[int], str]) -> None:
    for number in (2, 3):
        rig.engine.admit(number, prompt(number, 50, new=30))
    rig.engine.admit(4, search(30, 3))
    rig.engine.admit(1, search())
    rig.finish_all([2, 3, 4, 1], tokens=5)
    assert (rig.bits[1], rig.made[1], rig.text[1]) == alone


def test_interrupted_after_every_slice(
    rig: Rig, alone: tuple[Bits, list[int], str], tmp_path: Path
) -> None:
    """By turns paged out, thawed, forked and lost; each choice is made after the same bits."""
    bits, made, text = alone
    rig.engine.admit(1, search())
    now, ours, said, reason, step = 1, [], "", None, 1
    while reason is None:
        result = rig.slice(now, 3)
        ours += result.tokens
        said += result.text
        reason = result.finish_reason
        assert rig.engine.check() == []
        if reason or not result.tokens:
            continue
        step += 1
        old = now
        if step % 4 == 0:
            rig.engine.page_out(now)
        elif step % 4 == 1:
            rig.engine.freeze(now, tmp_path / "frozen")
            now = step * 10
            rig.engine.thaw(now, tmp_path / "frozen")
        elif step % 4 == 2:
            now = step * 10
            rig.engine.fork(old, now)
        else:
            now = step * 10
            rig.engine.admit(now, search(), ours, said)
        if old != now:
            rig.engine.release(old)
    assert (ours, said) == (made, text)
    seen = {row for each in rig.bits.values() for row in each}
    assert seen == set(bits)


def test_what_is_paged_out_need_not_be_computed_again(rig: Rig, tmp_path: Path) -> None:
    rig.engine.admit(1, search())
    rig.advance(1, 30)
    rig.engine.freeze(1, tmp_path / "frozen")
    rig.engine.page_out(1)
    rig.engine.thaw(2, tmp_path / "frozen")
    for number in (1, 2):
        result = rig.slice(number, 4)
        assert (result.prefilled, len(result.tokens)) == (0, 4)


def test_beams_that_were_lost_are_computed_again(
    tmp_path: Path, alone: tuple[Bits, list[int], str]
) -> None:
    poor = Rig(engine(make(tmp_path, "llama"), ram_bytes=1000))
    poor.engine.admit(1, search())
    poor.advance(1, 30)
    assert poor.engine.page_out(1).bytes == 0
    assert poor.slice(1, 4).prefilled == 64
    poor.finish(1)
    assert (poor.bits[1], poor.text[1]) == (alone[0], alone[2])


def test_beams_share_the_tensors_of_their_prompt(rig: Rig) -> None:
    rig.engine.admit(1, search(150, 8))
    rig.advance(1, 8)  # the first step, nothing fed yet
    s = rig.engine.residency.sequences[1]
    assert s.branches is not None
    assert len(s.branches.kvs) == 8
    assert len({id(kv.tensors) for kv in s.kvs}) == 1
    rig.finish(1)


def test_no_more_beams_than_rows(rig: Rig) -> None:
    assert rig.engine.abilities.beams == 8
    with pytest.raises(InvalidCall, match="at most 8"):
        rig.engine.admit(1, Prompt((Message("user", "x"),), Sampling(beams=9, seed=1)))


def test_without_padding(tmp_path: Path, alone: tuple[Bits, list[int], str]) -> None:
    loose = Rig(engine(make(tmp_path, "llama"), deterministic=False))
    loose.engine.admit(1, search())
    loose.engine.admit(2, search())
    loose.slice(2, 9)
    loose.engine.page_out(2)
    loose.finish_all([1, 2])
    assert loose.text[1] == loose.text[2] == alone[2]


def test_cells_that_are_short_for_all_beams_end_with_a_sentence(tmp_path: Path) -> None:
    narrow = engine(make(tmp_path, "llama"), cells=512)
    narrow.admit(1, search(150, 8))
    error = None
    narrow.run(1, Slice(200))
    while error is None:
        for _, result in narrow.turn():
            if isinstance(result, Exception):
                error = result
            else:
                assert result.finish_reason is None
                narrow.run(1, Slice(200))
    assert "do not fit into the 512 cells" in str(error)
