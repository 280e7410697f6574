"""What a second life of a process finds in the journal: on disk and in memory."""

from __future__ import annotations

import struct

import pytest
from journals import Disk, call, end, process, tokens

from aios.abi.calls import KeyInfo
from aios.ports import (
    CallEnd,
    CallFilter,
    CallRow,
    ContextCut,
    ContextRow,
    ContextSetting,
    EnvRow,
    Forget,
    GrantGone,
    GrantRow,
    Image,
    KeyGone,
    KeyRow,
    MailRow,
    MailTaken,
    MarkRow,
    Record,
    Rewind,
    SpentRow,
    TokensRow,
)


def said(number: int, position: float, text: str = "", pid: int = 1) -> ContextRow:
    body = b'"%s"' % (text or f"said by c{number}").encode()
    return ContextRow(pid, "main", position, f"c{number}", body)


def mail(number: int, id: str = "c1", pid: int = 1) -> MailRow:
    body = b'{"id":"%s","sender":2,"body":"%d","at":1.0}' % (id.encode(), number)
    return MailRow(pid, number, body)


async def test_what_a_process_needs_to_go_on_is_there_again(disk: Disk) -> None:
    records: list[Record] = [
        process(1),
        said(1, 0.0),
        ContextSetting(1, "main", b'{"strategy":"drop"}'),
        SpentRow(1, b'{"calls":3}', b'{"tokens":9}'),
        EnvRow(1, b"\x00sealed"),
        mail(1),
        MarkRow("k1", 1, 7, 2.5, b'{"note":"x"}'),
    ]
    await (await disk.open()).append(records)
    journal = await disk.open()
    image = journal.load()
    assert image.contexts == (records[1],)
    assert image.settings == (records[2],)
    assert image.spent == (records[3],)
    assert image.mail == (records[5],)
    assert image.marks == (records[6],)
    assert await journal.environment(1) == b"\x00sealed"
    assert await journal.environment(2) is None
    await journal.append([SpentRow(1, b"{}", b"{}"), ContextSetting(1, "main", b"{}")])
    image = journal.load()
    assert image.spent == (SpentRow(1, b"{}", b"{}"),)  # the last one counts
    assert image.settings == (ContextSetting(1, "main", b"{}"),)


async def test_a_context_as_it_was_after_each_call(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([said(1, 0.0), said(1, 1.0), said(2, 2.0), said(2, 3.0)])
    cut = ContextCut(1, "main", (1.0, 2.0), "c3")
    await journal.append([cut, said(3, 1.5, "summary"), said(4, 4.0)])
    await journal.append([ContextCut(1, "main", (0.0, 1.5, 3.0, 4.0), "c5"), said(5, 0.0, "new")])

    async def positions(after: int) -> list[float]:
        return [row.position for row in await journal.context_at(1, after)]

    assert [await positions(number) for number in range(6)] == [
        [],
        [0.0, 1.0],
        [0.0, 1.0, 2.0, 3.0],
        [0.0, 1.5, 3.0],
        [0.0, 1.5, 3.0, 4.0],
        [0.0],
    ]
    assert (await journal.context_at(1, 3))[1] == said(3, 1.5, "summary")
    assert journal.load().contexts == (said(5, 0.0, "new"),)


async def test_one_append_may_say_cut_and_say_again_at_one_place(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append(
        [
            said(1, 0.0, "first"),
            ContextCut(1, "main", (0.0,), "c2"),
            said(3, 0.0, "third"),
            ContextCut(1, "main", (0.0,), "c3"),
            said(3, 0.0, "third again"),
        ]
    )
    assert [await journal.context_at(1, number) for number in (1, 2, 3)] == [
        [said(1, 0.0, "first")],
        [],
        [said(3, 0.0, "third again")],
    ]


async def test_a_process_that_is_rolled_back_is_as_it_was_then(disk: Disk) -> None:
    journal = await disk.open()
    before: list[Record] = [process(1), mail(1), mail(2), MarkRow("k2", 1, 2, 2.0, b"{}")]
    await journal.append([*before, call(1), said(1, 0.0), said(1, 1.0), end(1)])
    await journal.append([call(2), MailTaken(1, 1, "c2"), end(2)])
    then = journal.load()
    after: list[Record] = [ContextCut(1, "main", (1.0,), "c3"), said(3, 2.0), end(3)]
    await journal.append([call(3), *after, call(4), MailTaken(1, 2, "c4"), end(4)])
    await journal.append([MarkRow("k4", 1, 4, 4.0, b"{}"), call(5), call(6, pid=2)])

    await journal.append([call(7, pid=3), Rewind(1, 2, 9.5), end(7)])
    now = journal.load()
    assert (now.contexts, now.mail, now.marks) == (then.contexts, then.mail, then.marks)
    assert [row.id for row in now.open_calls] == ["c6"]  # another's
    past = await journal.calls(1)
    assert [(history.start.id, history.void) for history in past] == [
        ("c1", False),
        ("c2", False),
        ("c3", True),
        ("c4", True),
        ("c5", True),
    ]
    assert past[3].end == end(4)
    ended = past[4].end
    assert ended is not None
    assert (ended.state, ended.ended_at, ended.code) == ("cancelled", 9.5, "cancelled")
    assert [h.start.id for h in await journal.calls(1, CallFilter(void=False))] == ["c1", "c2"]
    assert now.last_call == 7  # no number is given twice

    await journal.append([call(8), said(8, 2.0), MailTaken(1, 2, "c8"), end(8)])
    assert journal.load().contexts == (*then.contexts, said(8, 2.0))
    assert journal.load().mail == ()


async def test_a_rollback_that_a_process_asks_for_itself_is_done(disk: Disk) -> None:
    journal = await disk.open()
    await journal.append([process(1), call(1), end(1), call(2)])
    await journal.append([Rewind(1, 1, 5.0), end(2)])
    (_, asked) = await journal.calls(1)
    assert (asked.void, asked.end) == (True, end(2))
    assert journal.load().open_calls == ()


async def test_received_mail_is_kept_against_being_sent_again(disk: Disk) -> None:
    journal = await disk.open()
    sent = [mail(1, "c17"), mail(2, "theirs"), mail(3, "c18"), mail(4, "c19"), mail(5, "c20")]
    await journal.append(sent)
    await journal.append([MailTaken(1, number, f"c{number}") for number in (1, 2, 3, 4)])
    image = journal.load()
    assert image.mail == (mail(5, "c20"),) == tuple(await journal.mail(1))
    # what its sender named may come again; the last one says where the numbers go on
    assert image.taken == (mail(2, "theirs"), mail(4, "c19"))


async def test_rights_and_keys_that_are_gone(disk: Disk) -> None:
    journal = await disk.open()
    key = KeyRow(KeyInfo(id="k1", user="ann"), "00")
    right, other = GrantRow("pid:7", "*", "r"), GrantRow("pid:7", "*", "s")
    await journal.append([key, right, other])
    await journal.append([KeyGone("k1"), GrantGone("pid:7", "*", "r"), KeyGone("never")])
    assert (journal.load().keys, journal.load().grants) == ((), (other,))
    await journal.append([GrantGone("pid:7", "*", "s"), right])
    assert journal.load().grants == (right,)


async def test_nothing_of_a_forgotten_process_is_left_but_its_events(disk: Disk) -> None:
    journal = await disk.open()
    everything: list[Record] = [
        process(1),
        call(1),
        tokens(1, 0, 5),
        said(1, 0.0),
        ContextSetting(1, "main", b"{}"),
        SpentRow(1, b"{}", b"{}"),
        EnvRow(1, b"x"),
        mail(1),
        mail(2),
        MailTaken(1, 2, "c1"),
        MarkRow("k1", 1, 1, 1.0, b"{}"),
        GrantRow("pid:1", "*", "r"),
        end(1),
    ]
    await journal.append([*everything, process(2), said(2, 0.0, pid=2), Forget(1)])
    image = (await disk.open()).load()
    assert image == Image(0, 2, 1, processes=(process(2),), contexts=(said(2, 0.0, pid=2),))
    kept = (await (await disk.open()).report()).rows
    assert {name: kept[name] for name in ("ends", "tokens", "environments", "mail", "spent")} == {
        "ends": 0,
        "tokens": 0,
        "environments": 0,
        "mail": 0,
        "spent": 0,
    }


async def test_what_slices_added_comes_back_with_their_tokens(disk: Disk) -> None:
    journal = await disk.open()
    rows = [TokensRow("c1", n, struct.pack("<i", n), b'{"text":"%d"}' % n) for n in range(3)]
    await journal.append([call(1), rows[1], rows[0], rows[2]])
    (history,) = await journal.calls(1)
    assert history.tokens == (0, 1, 2)
    assert history.details == (b'{"text":"0"}', b'{"text":"1"}', b'{"text":"2"}')


# --- asking for calls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (CallFilter(limit=3), [8, 9, 10]),
        (CallFilter(limit=2, before=5), [3, 4]),
        (CallFilter(upto=2), [1, 2]),
        (CallFilter(after=8), [9, 10]),
        (CallFilter(after=2, before=9, limit=2), [7, 8]),
        (CallFilter(names=("get_aid", "sto_read")), [4, 8]),
        (CallFilter(since=9.0), [9, 10]),
        (CallFilter(until=2.0), [1, 2]),
        (CallFilter(since=3.0, until=4.0), [3, 4]),
        (CallFilter(open_only=True), [10]),
        (CallFilter(text="STRASSE"), [6]),
        (CallFilter(text='say "hi"'), [7]),
        (CallFilter(text="went wrong"), [5]),
        (CallFilter(text="hello", limit=1), [9]),
        (CallFilter(text="nowhere"), []),
    ],
)
async def test_which_calls(disk: Disk, which: CallFilter, found: list[int]) -> None:
    journal = await disk.open()
    requests = {6: '{"text":"Straße"}', 7: r'{"text":"say \"hi\""}'}
    for number in range(1, 11):
        name = {4: "get_aid", 8: "sto_read"}.get(number, "generate")
        request = requests.get(number, "{}").encode()
        await journal.append([CallRow(f"c{number}", 1, name, float(number), request)])
        if number == 5:
            failed = CallEnd("c5", "failed", 5.5, None, "it Went wrong", "core_failed")
            await journal.append([failed])
        elif number < 10:
            await journal.append([end(number)])
    await journal.append([call(11, pid=2)])
    past = await journal.calls(1, which)
    assert [int(history.start.id[1:]) for history in past] == found
    assert all(
        history.end is None
        or history.end.code == ("core_failed" if history.start.id == "c5" else None)
        for history in past
    )
