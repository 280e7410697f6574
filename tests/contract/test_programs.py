"""What every ports.Programs must do; then what only real programs can show.

A rig is a Programs and, for each behaviour named in BEHAVIOURS, the argv that has it. To hold
another Programs to the contract, add its rig to the fixture.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from aios.drivers.programs import Log, OsPrograms
from aios.errors import Conflict, InvalidCall, NotFound
from aios.ports import Programs, Started, Taken
from aios.testing import ScriptedPrograms

BEHAVIOURS = {
    "exit 0": "",
    "exit 3": "raise SystemExit(3)",
    "never ends": "print('ready', flush=True); import time; time.sleep(1000)",
}


class Rig(NamedTuple):
    programs: Programs
    argv: Callable[[str], list[str]]


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def os_rig(tmp_path: Path) -> Rig:
    return Rig(OsPrograms(tmp_path / "logs"), lambda behaviour: python(BEHAVIOURS[behaviour]))


def scripted_rig(tmp_path: Path) -> Rig:
    async def exits(status: int) -> int:
        return status

    async def never_ends() -> int:
        await asyncio.Event().wait()
        return 0

    programs = {
        "exit 0": lambda pid, env: exits(0),
        "exit 3": lambda pid, env: exits(3),
        "never ends": lambda pid, env: never_ends(),
    }
    return Rig(ScriptedPrograms(programs), lambda behaviour: [behaviour])


@pytest.fixture(params=[os_rig, scripted_rig], ids=["os", "scripted"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    rig: Rig = request.param(tmp_path)
    yield rig
    await rig.programs.close()


async def until(check: Callable[[], bool]) -> None:
    """Look again and again: the operating system does not tell us."""
    while not check():  # noqa: ASYNC110 (it gives way, it does not sleep)
        await asyncio.sleep(0)


async def printed(programs: Programs, pid: int, *words: str) -> str:
    """Its log, once all of these words are in it."""
    while True:
        text, _ = await programs.log(pid, 0)
        if all(word in text for word in words):
            return text
        await asyncio.sleep(0)


class TestContract:
    @pytest.mark.parametrize(("behaviour", "status"), [("exit 0", 0), ("exit 3", 3)])
    async def test_wait_gives_the_status(self, rig: Rig, behaviour: str, status: int) -> None:
        await rig.programs.start(1, rig.argv(behaviour), None, {})
        assert await rig.programs.wait(1) == status
        assert await rig.programs.wait(1) == status  # for whoever asks later too

    async def test_all_who_wait_are_told(self, rig: Rig) -> None:
        await rig.programs.start(1, rig.argv("never ends"), None, {})
        waiting = [asyncio.ensure_future(rig.programs.wait(1)) for _ in range(3)]
        cancelled = asyncio.ensure_future(rig.programs.wait(1))
        await asyncio.sleep(0)
        cancelled.cancel()
        await rig.programs.kill(1, 60)
        assert await asyncio.gather(*waiting) == [-signal.SIGTERM] * 3

    async def test_a_log_is_there_from_the_start_and_goes_on_where_it_was_left(
        self, rig: Rig
    ) -> None:
        await rig.programs.start(1, rig.argv("exit 0"), None, {})
        assert await rig.programs.log(1, 0) == ("", 0)
        await rig.programs.wait(1)
        assert await rig.programs.log(1, 0) == ("", 0)

    async def test_kill_waits_for_the_end_and_may_be_repeated(self, rig: Rig) -> None:
        await rig.programs.start(1, rig.argv("never ends"), None, {})
        await asyncio.gather(rig.programs.kill(1, 60), rig.programs.kill(1, 60))
        await rig.programs.kill(1, 60)
        assert await rig.programs.wait(1) == -signal.SIGTERM

    async def test_a_stopped_program_is_killed_without_waiting_for_the_grace(
        self, rig: Rig
    ) -> None:
        await rig.programs.start(1, rig.argv("never ends"), None, {})
        await rig.programs.stop(1)
        await rig.programs.kill(1, 60)
        assert await rig.programs.wait(1) == -signal.SIGTERM

    async def test_stop_and_cont_after_the_end_do_nothing(self, rig: Rig) -> None:
        await rig.programs.start(1, rig.argv("exit 0"), None, {})
        await rig.programs.wait(1)
        await rig.programs.stop(1)
        await rig.programs.cont(1)

    async def test_a_pid_runs_one_program_at_a_time(self, rig: Rig) -> None:
        await rig.programs.start(1, rig.argv("never ends"), None, {})
        with pytest.raises(Conflict, match="process 1"):
            await rig.programs.start(1, rig.argv("exit 0"), None, {})
        await rig.programs.kill(1, 60)
        await rig.programs.start(1, rig.argv("exit 3"), None, {})
        assert await rig.programs.wait(1) == 3

    async def test_a_running_program_takes_something_and_any_other_nothing(self, rig: Rig) -> None:
        await rig.programs.start(1, rig.argv("never ends"), None, {})
        assert (await rig.programs.taken(1)).rss_bytes > 0
        await rig.programs.kill(1, 60)
        assert await rig.programs.taken(1) == await rig.programs.taken(7) == Taken()

    async def test_what_was_never_started_is_not_found(self, rig: Rig) -> None:
        for call in (rig.programs.wait, rig.programs.stop, rig.programs.cont):
            with pytest.raises(NotFound, match="process 7"):
                await call(7)
        with pytest.raises(NotFound):
            await rig.programs.log(7, 0)
        await rig.programs.kill(7, 60)  # it is gone, as was asked

    async def test_close_ends_all(self, rig: Rig) -> None:
        for pid in range(1, 4):
            await rig.programs.start(pid, rig.argv("never ends"), None, {})
        await rig.programs.close()
        assert [await rig.programs.wait(pid) for pid in range(1, 4)] == [-signal.SIGTERM] * 3

    async def test_no_survivor_no_trouble(self, rig: Rig) -> None:
        started = await rig.programs.start(1, rig.argv("exit 0"), None, {})
        await rig.programs.wait(1)
        await rig.programs.end_survivor(started)


# --- real programs --------------------------------------------------------------------------------


@pytest.fixture
async def programs(tmp_path: Path) -> AsyncIterator[OsPrograms]:
    programs = OsPrograms(tmp_path / "logs")
    yield programs
    await programs.close()


def state(os_pid: int) -> str:
    """R, S, T (stopped), Z…; empty when there is none."""
    try:
        return Path(f"/proc/{os_pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


async def test_a_signal_that_ended_it_is_its_status(programs: OsPrograms) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    await programs.start(1, python(code), None, {})
    assert await programs.wait(1) == -signal.SIGKILL


async def test_what_ignores_term_is_killed_after_the_grace(programs: OsPrograms) -> None:
    code = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(1000)"""
    await programs.start(1, python(code), None, {})
    await printed(programs, 1, "ready")
    await programs.kill(1, 0.05)
    assert await programs.wait(1) == -signal.SIGKILL


async def test_the_log_is_read_while_it_runs(programs: OsPrograms) -> None:
    await programs.start(1, python(BEHAVIOURS["never ends"]), None, {})
    assert await printed(programs, 1, "ready") == "ready\n"


async def test_the_log_is_read_from_any_offset_also_after_the_end(programs: OsPrograms) -> None:
    code = "print('hello', flush=True); import sys; print('world', file=sys.stderr)"
    await programs.start(1, python(code), None, {})
    await programs.wait(1)
    assert await programs.log(1, 0) == ("hello\nworld\n", 12)
    assert await programs.log(1, 6) == ("world\n", 12)
    assert await programs.log(1, 12) == ("", 12)


@pytest.mark.parametrize(
    ("argv", "cwd", "env", "sentence"),
    [
        ([], None, {}, "no program to run"),
        ([""], None, {}, "no program to run"),
        (["no-such-program"], None, {"PATH": "/bin"}, "no program 'no-such-program' on its PATH"),
        (["/no/such/program"], None, {}, "no program '/no/such/program'"),
        (["/etc/passwd"], None, {}, "not executable"),
        (["/etc"], None, {}, "no program '/etc'"),
        (["true"], "/no/such/place", {}, "'/no/such/place' is not a directory"),
        (["true", "a\0b"], None, {}, "cannot be run"),
        (["true", "x" * 3_000_000], None, {}, "cannot be run"),
        (["true"], None, {"A=B": "c"}, "cannot be run"),
    ],
)
async def test_what_cannot_be_run_is_refused_in_a_sentence(
    programs: OsPrograms,
    argv: list[str],
    cwd: str | None,
    env: dict[str, str],
    sentence: str,
) -> None:
    with pytest.raises(InvalidCall, match=sentence):
        await programs.start(1, argv, cwd, env)
    with pytest.raises(NotFound):
        await programs.wait(1)


async def test_a_file_that_is_no_program_is_refused(programs: OsPrograms, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\x01\x02\x03")
    file.chmod(0o755)
    with pytest.raises(InvalidCall, match="Exec format error"):
        await programs.start(1, [str(file)], None, {})


async def test_the_environment_is_exactly_what_was_given(programs: OsPrograms) -> None:
    path = {"PATH": "/usr/bin:/bin"}
    await programs.start(1, ["env"], None, {**path, "AIOS_KEY": "é"})
    await programs.start(2, ["env"], None, {**path, "LC_CTYPE": "C"})
    for pid, more in ((1, "AIOS_KEY=é"), (2, "LC_CTYPE=C")):
        await programs.wait(pid)
        lines = (await programs.log(pid, 0))[0].splitlines()
        assert sorted(lines) == sorted([more, "PATH=/usr/bin:/bin"])


async def test_it_runs_in_its_directory_with_nothing_to_read(programs: OsPrograms) -> None:
    code = "import os; print(os.getcwd(), os.read(0, 1))"
    await programs.start(1, python(code), "/usr", {})
    await programs.wait(1)
    assert (await programs.log(1, 0))[0] == "/usr b''\n"


async def test_no_descriptor_and_no_ignored_signal_is_handed_down(programs: OsPrograms) -> None:
    code = """
import os
print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])
print(os.getpid() == os.getsid(0) == os.getpgid(0))"""
    await programs.start(1, ["sh", "-c", "grep SigIgn /proc/self/status"], None, {})
    await programs.start(2, python(code), None, {})
    await programs.wait(1)
    await programs.wait(2)
    assert int((await programs.log(1, 0))[0].split()[1], 16) == 0
    assert (await programs.log(2, 0))[0].splitlines() == ["[0, 1, 2]", "True"]


async def test_descriptors_and_processes_do_not_leak(programs: OsPrograms) -> None:
    async def one(pid: int) -> None:
        await programs.start(pid, ["true"], None, {})
        await programs.wait(pid)
        with pytest.raises(InvalidCall):
            await programs.start(pid, ["true", "a\0b"], None, {})

    await one(1)
    before = os.listdir("/proc/self/fd")
    await asyncio.gather(*(one(pid) for pid in range(2, 8)))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 (it does not wait)


async def test_stop_and_cont_reach_the_whole_group(programs: OsPrograms) -> None:
    code = """
import os, time
child = os.fork()
print('child', child, flush=True) if child else None
time.sleep(1000)"""
    started = await programs.start(1, python(code), None, {})
    child = int((await printed(programs, 1, "child", "\n")).split()[1])
    await programs.stop(1)
    await until(lambda: (state(started.os_pid), state(child)) == ("T", "T"))
    await programs.cont(1)
    await until(lambda: "T" not in (state(started.os_pid), state(child)))
    await programs.stop(1)
    await programs.kill(1, 60)
    assert state(started.os_pid) == ""
    assert state(child) in ("", "Z")


async def test_children_that_outlive_it_are_ended_with_their_grace(programs: OsPrograms) -> None:
    polite = """
import os, signal, time
def bye(*_):
    print('polite', flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
r, w = os.pipe()
if os.fork() == 0:
    print('child', os.getpid(), flush=True)
    os.write(w, b'.')
    time.sleep(1000)
os.read(r, 1)
os._exit(4)"""
    await programs.start(1, python(polite), None, {})
    assert await programs.wait(1) == 4
    text, _ = await programs.log(1, 0)
    assert text.split()[2] == "polite"
    assert state(int(text.split()[1])) in ("", "Z")


async def test_a_stubborn_child_goes_at_the_end_of_the_kills_grace(programs: OsPrograms) -> None:
    code = """
import os, signal, time
r, w = os.pipe()
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print('child', os.getpid(), flush=True)
    os.write(w, b'.')
    time.sleep(1000)
os.read(r, 1)
time.sleep(1000)"""
    await programs.start(1, python(code), None, {})
    child = int((await printed(programs, 1, "child", "\n")).split()[1])
    await programs.kill(1, 0.1)
    assert await programs.wait(1) == -signal.SIGTERM
    assert state(child) in ("", "Z")


async def test_a_program_that_left_its_group_with_the_pipe_does_not_hold_us(
    programs: OsPrograms,
) -> None:
    code = """
import os, time
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    print('escaped', os.getpid(), flush=True)
    os.write(w, b'.')
    time.sleep(1000)
os.read(r, 1)"""
    await programs.start(1, python(code), None, {})
    assert await programs.wait(1) == 0
    escaped = int((await programs.log(1, 0))[0].split()[1])
    os.kill(escaped, signal.SIGKILL)


async def test_a_flood_is_bounded_on_disk_and_an_offset_stays_true(tmp_path: Path) -> None:
    code = "import sys\nfor i in range(60_000): sys.stdout.write(f'{i:09}\\n')"
    programs = OsPrograms(tmp_path / "logs", log_bytes=100_000)
    await programs.start(1, python(code), None, {})
    await programs.wait(1)
    files = list((tmp_path / "logs" / "1").iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 2 * (100_000 + 65_536)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    text, end = await programs.log(1, 0)
    assert end == 600_000
    assert text.endswith("000059999\n")
    assert await programs.log(1, 599_990) == ("000059999\n", 600_000)
    assert await programs.log(1, 600_000) == ("", 600_000)


async def test_what_a_program_takes_counts_its_children(programs: OsPrograms) -> None:
    code = """
import os, subprocess, sys, time
burn = "n = 0\\nwhile sum(__import__('os').times()[:2]) < 0.3: n += 1\\n"
subprocess.run([sys.executable, "-I", "-S", "-c", burn])
subprocess.Popen([sys.executable, "-I", "-S", "-c", "b = b'x' * 60_000_000; " + burn +
                 "print('burnt', flush=True); import time; time.sleep(1000)"])
time.sleep(1000)
"""
    await programs.start(1, python(code), None, {})
    await printed(programs, 1, "burnt")
    taken = await programs.taken(1)
    assert taken.cpu_s >= 0.6  # of one that has ended, and of one that has not
    assert taken.rss_bytes > 60_000_000


async def test_a_flood_leaves_the_kernel_time(programs: OsPrograms) -> None:
    await programs.start(1, ["yes"], None, {})
    await printed(programs, 1, "y\n")
    loop = asyncio.get_running_loop()
    before, begun = resource.getrusage(resource.RUSAGE_SELF), loop.time()
    quiet = await programs.start(2, ["sleep", "0.5"], None, {})
    await programs.wait(2)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert quiet.os_pid
    assert spent < 0.4 * (loop.time() - begun)
    await programs.kill(1, 60)


def test_a_character_in_two_halves_waits_for_its_second(tmp_path: Path) -> None:
    log = Log(tmp_path / "1")
    log.append("né".encode()[:2])
    assert log.text(0, more_to_come=True) == ("n", 1)
    assert log.text(0, more_to_come=False) == ("n\ufffd", 2)
    log.append("né".encode()[2:])
    assert log.text(1, more_to_come=True) == ("é", 3)
    with pytest.raises(InvalidCall, match="-1"):
        log.text(-1, more_to_come=True)


def test_a_log_goes_on_where_the_last_kernel_stopped(tmp_path: Path) -> None:
    Log(tmp_path / "1").append(b"one\n")
    Log(tmp_path / "1").append(b"two\n")
    assert Log(tmp_path / "1").text(0, more_to_come=False) == ("one\ntwo\n", 8)


def test_a_long_log_comes_in_parts(tmp_path: Path) -> None:
    log = Log(tmp_path / "1")
    log.append(b"123456789")
    assert log.text(0, more_to_come=False, most=5) == ("12345", 5)
    assert log.text(5, more_to_come=False, most=5) == ("6789", 9)


def test_output_that_cannot_be_kept_is_lost_without_harm(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a file in the way")
    Log(tmp_path / "1").append(b"lost")


def test_old_logs_go_when_there_are_too_many(tmp_path: Path) -> None:
    for pid in range(1, 5):
        Log(tmp_path / str(pid)).append(b"0123456789")
        os.utime(tmp_path / str(pid) / "0.log", (pid, pid))
    OsPrograms(tmp_path, kept_bytes=25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


# --- lives of a kernel ----------------------------------------------------------------------------

KERNEL = """
import asyncio, os, sys
from pathlib import Path
from aios.drivers.programs import OsPrograms
async def main():
    programs = OsPrograms(Path(sys.argv[1]))
    started = await programs.start(1, ["sh", "-c", "sleep 1000 & echo $!; wait"], None,
                                   {"PATH": os.environ["PATH"]})
    text = ""
    while "\\n" not in text:
        text, _ = await programs.log(1, 0)
        await asyncio.sleep(0)
    print(started.os_pid, started.os_started, text, flush=True)
    await programs.wait(1)
asyncio.run(main())
"""


async def test_programs_die_with_the_kernel_and_the_next_one_ends_what_survived(
    programs: OsPrograms, tmp_path: Path
) -> None:
    kernel = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KERNEL, str(tmp_path / "old"), stdout=subprocess.PIPE
    )
    assert kernel.stdout is not None
    os_pid, os_started, child = (await kernel.stdout.readline()).split()
    kernel.kill()
    await kernel.wait()
    await until(lambda: state(int(os_pid)) in ("", "Z"))
    assert state(int(child)) not in ("", "Z")  # only the program itself is bound to its kernel
    await programs.end_survivor(Started(int(os_pid), float(os_started)))
    assert state(int(child)) in ("", "Z")


async def test_a_survivor_is_ended_and_a_later_user_of_its_pid_is_not(
    programs: OsPrograms,
) -> None:
    started = await programs.start(1, python(BEHAVIOURS["never ends"]), None, {})
    later = Started(started.os_pid, started.os_started - 1.0)
    await programs.end_survivor(later)
    assert state(started.os_pid) not in ("", "Z")
    await programs.end_survivor(started)
    assert await programs.wait(1) == -signal.SIGTERM


async def test_gone_waits_for_a_process_that_was_not_started_here(programs: OsPrograms) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    over = asyncio.ensure_future(programs.gone(stranger.pid))
    cancelled = asyncio.ensure_future(programs.gone(stranger.pid))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert not over.done()
    stranger.kill()
    await over
    await stranger.wait()
    await programs.gone(stranger.pid)  # at once
