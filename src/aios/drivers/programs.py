"""Programs: started, signalled, waited for, and what they print kept.

Each program leads its own session and process group, gets exactly the environment that it is given,
reads nothing on stdin, and dies with the kernel on Linux (launch.py). A signal goes to the whole
group; a program has ended when nothing of its group is left. Use from one event loop, in the main
thread: Linux ties "dies with its parent" to the thread that started it.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from aios.errors import Conflict, DriverError, InvalidCall, NotFound
from aios.ports import Started, Taken

LOG_BYTES = 10_000_000  # of one file of a log; a program keeps its newest two
KEPT_BYTES = 1_000_000_000  # of all logs together; beyond it the oldest go when the kernel starts
READ_BYTES = 1_000_000  # the most that one look at a log returns
LEFTOVER_GRACE_S = 1.0  # TERM to KILL for children that outlive a program which ended by itself
SURVIVOR_GRACE_S = 5.0  # the same for what a dead kernel left behind
UNKILLABLE_S = 2.0  # a process stuck in the host's kernel is not waited for any longer
POLL_S = 0.02  # between two looks at a group that nobody tells us about
_LOOK_S = 1.0  # between two looks at a process of others, where the system cannot tell

_PIPE_BYTES = 65_536  # of a pipe on Linux: one full read means that the program is faster than us
_FLOOD_PAUSE_S = 0.005  # after a full read: bounds a flood to 13 MB/s and 2 % of one core
_LAUNCH = str(Path(__file__).with_name("launch.py"))
_PROC = Path("/proc")
_HAS_PROC = _PROC.joinpath("self/stat").exists()
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Program:
    pid: int
    child: subprocess.Popen[bytes]
    output: int  # the reading end of its stdout and stderr
    book: Log
    ended: asyncio.Future[int]
    deadline: float | None = None  # of a kill: when TERM becomes KILL, in the loop's time

    @property
    def group(self) -> int:
        return self.child.pid


class OsPrograms:
    """ports.Programs over the operating system.

    ``logs`` is the directory of the logs; each is two files of ``log_bytes``, and all of them
    together have ``kept_bytes`` when the kernel starts.
    """

    def __init__(
        self, logs: Path, log_bytes: int = LOG_BYTES, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._logs, self._log_bytes = logs, log_bytes
        self._running: dict[int, _Program] = {}
        self._statuses: dict[int, int] = {}
        self._sweeps: set[asyncio.Task[None]] = set()
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(logs, kept_bytes)

    def __repr__(self) -> str:
        return f"<OsPrograms running={sorted(self._running)} logs={str(self._logs)!r}>"

    async def start(
        self, pid: int, argv: Sequence[str], cwd: str | None, env: dict[str, str]
    ) -> Started:
        if pid in self._running:
            raise Conflict(f"process {pid} has a program that still runs; kill it first.")
        file = _executable(argv, cwd, env)
        loop = asyncio.get_running_loop()
        try:
            status, status_end = os.pipe()
            output, output_end = os.pipe()
        except OSError as error:
            raise DriverError(f"no pipe for process {pid}: {error}; raise `ulimit -n`.") from error
        try:
            child = subprocess.Popen(  # noqa: ASYNC220 (vfork and exec: about 1 ms)
                [
                    *(sys.executable, "-I", "-S", _LAUNCH),
                    *(str(status_end), str(os.getpid()), "=" + env.get("LC_CTYPE", "")),
                    *(file, *argv),
                ],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                start_new_session=True,
                pass_fds=(status_end,),
            )
        except (OSError, ValueError) as error:  # too long, or a NUL in it
            os.close(status)
            os.close(output)
            raise InvalidCall(f"{argv[0]!r} cannot be run: {error}.") from error
        finally:
            os.close(status_end)
            os.close(output_end)
        # At once: a process that has ended and been waited for has no start time any more.
        started = Started(child.pid, _started(child.pid) or 0.0)
        try:
            failure = await _read_to_end(loop, status)
        except asyncio.CancelledError:
            _signal(child.pid, signal.SIGKILL)
            child.wait()
            os.close(output)
            raise
        if failure:
            child.wait()  # it is ending: it wrote its last word
            os.close(output)
            reason = os.strerror(int(failure))
            raise InvalidCall(f"{argv[0]!r} cannot be run: {reason}; is it a program?")
        os.set_blocking(output, False)
        book = Log(self._logs / str(pid), self._log_bytes)
        book.begin()
        program = _Program(pid, child, output, book, loop.create_future())
        self._running[pid] = program
        self._statuses.pop(pid, None)
        loop.add_reader(output, self._pump, program)
        self._watch(loop, program)
        return started

    async def wait(self, pid: int) -> int:
        program = self._running.get(pid)
        if program is not None:
            return await asyncio.shield(program.ended)
        if pid in self._statuses:
            return self._statuses[pid]
        raise NotFound(f"process {pid} has no program that was started here.")

    async def stop(self, pid: int) -> None:
        self._send(pid, signal.SIGSTOP)

    async def cont(self, pid: int) -> None:
        self._send(pid, signal.SIGCONT)

    async def kill(self, pid: int, grace_s: float) -> None:
        program = self._running.get(pid)
        if program is None:
            return
        program.deadline = asyncio.get_running_loop().time() + grace_s
        _terminate(program.group)
        await asyncio.wait({program.ended}, timeout=grace_s)
        if not program.ended.done():
            _signal(program.group, signal.SIGKILL)
            await asyncio.wait({program.ended}, timeout=2 * UNKILLABLE_S)
        if not program.ended.done():
            raise DriverError(f"process {pid} (OS pid {program.group}) does not die by SIGKILL.")

    async def end_survivor(self, started: Started) -> None:
        if not _is_survivor(started):
            return
        _terminate(started.os_pid)
        deadline = asyncio.get_running_loop().time() + SURVIVOR_GRACE_S
        await _end_group(started.os_pid, deadline)

    async def gone(self, os_pid: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(os_pid) if sys.platform == "linux" else None
        except ProcessLookupError:
            return
        except OSError:
            pidfd = None
        if pidfd is None:
            while _exists(os_pid):  # noqa: ASYNC110 (nobody tells us)
                await asyncio.sleep(_LOOK_S)
            return
        over = asyncio.Event()
        loop.add_reader(pidfd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)

    async def log(self, pid: int, offset: int) -> tuple[str, int]:
        """At most READ_BYTES at a time; what is older than the log keeps is passed over."""
        return Log(self._logs / str(pid)).text(offset, more_to_come=pid in self._running)

    async def taken(self, pid: int) -> Taken:
        program = self._running.get(pid)
        if program is None:
            return Taken()
        return await asyncio.to_thread(_taken, program.group)  # it reads a file a process

    async def close(self) -> None:
        """End all that runs."""
        await asyncio.gather(*(self.kill(pid, SURVIVOR_GRACE_S) for pid in list(self._running)))
        await asyncio.gather(*self._sweeps)

    def _send(self, pid: int, number: signal.Signals) -> None:
        program = self._running.get(pid)
        if program is not None:
            _signal(program.group, number)
        elif pid not in self._statuses:
            raise NotFound(f"process {pid} has no program that was started here.")

    def _watch(self, loop: asyncio.AbstractEventLoop, program: _Program) -> None:
        """Have _left called when the program's first process has ended."""
        try:
            pidfd = os.pidfd_open(program.child.pid) if sys.platform == "linux" else None
        except OSError:  # a sandbox without it, or no descriptor left
            pidfd = None

        def readable() -> None:
            assert pidfd is not None
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._left(program)

        def wait() -> None:
            program.child.wait()
            loop.call_soon_threadsafe(self._left, program)

        if pidfd is not None:
            loop.add_reader(pidfd, readable)
        else:
            threading.Thread(target=wait, name=f"wait-{program.pid}", daemon=True).start()

    def _pump(self, program: _Program) -> None:
        """Carry what it printed from the pipe to its log."""
        loop = asyncio.get_running_loop()
        try:
            data = os.read(program.output, _PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:  # all of its group closed it; the end of the program is seen elsewhere
            loop.remove_reader(program.output)
            return
        program.book.append(data)
        if len(data) == _PIPE_BYTES:
            loop.remove_reader(program.output)
            loop.call_later(_FLOOD_PAUSE_S, self._pump_on, program)

    def _pump_on(self, program: _Program) -> None:
        if not program.ended.done():
            asyncio.get_running_loop().add_reader(program.output, self._pump, program)

    def _left(self, program: _Program) -> None:
        """Its first process has ended; end what is left of its group, then say so."""
        program.child.wait()
        sweep = asyncio.get_running_loop().create_task(self._sweep(program))
        self._sweeps.add(sweep)
        sweep.add_done_callback(self._sweeps.discard)

    async def _sweep(self, program: _Program) -> None:
        loop = asyncio.get_running_loop()
        if _is_alive(program.group):
            if program.deadline is None:  # else a kill has sent TERM: twice can mean "now"
                program.deadline = loop.time() + LEFTOVER_GRACE_S
                _terminate(program.group)
            await _end_group(program.group, program.deadline)
        loop.remove_reader(program.output)
        for data in _rest(program.output):
            program.book.append(data)
        os.close(program.output)
        del self._running[program.pid]
        self._statuses[program.pid] = program.child.returncode
        program.ended.set_result(program.child.returncode)


def _exists(os_pid: int) -> bool:
    try:
        os.kill(os_pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- starting -------------------------------------------------------------------------------------


def _executable(argv: Sequence[str], cwd: str | None, env: dict[str, str]) -> str:
    """The file that argv[0] means in that directory and with that PATH."""
    if not argv or not argv[0]:
        raise InvalidCall("there is no program to run; name it first in argv.")
    if cwd is not None and not os.path.isdir(cwd):
        raise InvalidCall(f"{cwd!r} is not a directory to run {argv[0]!r} in.")
    name = argv[0]
    if os.sep not in name:
        found = shutil.which(name, path=env.get("PATH", os.defpath))
        if found is None:
            raise InvalidCall(f"there is no program {name!r} on its PATH; give its full path.")
        return os.path.abspath(found)
    file = os.path.abspath(os.path.join(cwd or "", name))
    if not os.path.isfile(file):
        raise InvalidCall(f"there is no program {file!r}.")
    if not os.access(file, os.X_OK):
        raise InvalidCall(f"{file!r} is not executable; run it by its interpreter, or chmod +x it.")
    return file


async def _read_to_end(loop: asyncio.AbstractEventLoop, fd: int) -> bytes:
    """All that comes before the pipe is closed; a few bytes."""
    os.set_blocking(fd, False)
    done: asyncio.Future[bytes] = loop.create_future()

    def readable() -> None:
        if not done.done():
            done.set_result(os.read(fd, 64))

    loop.add_reader(fd, readable)
    try:
        return await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _rest(fd: int) -> Iterator[bytes]:
    """What is still in a pipe; not for ever, as a writer may have left the group."""
    for _ in range(16):
        try:
            data = os.read(fd, _PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:
            return
        yield data


# --- groups ---------------------------------------------------------------------------------------


def _signal(group: int, number: int) -> bool:
    """False if there is no such group (or none that is ours)."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _terminate(group: int) -> None:
    _signal(group, signal.SIGTERM)
    _signal(group, signal.SIGCONT)  # a stopped process sees TERM only when it goes on


async def _end_group(group: int, deadline: float) -> None:
    """Wait until nothing of it is alive; KILL at the deadline (the loop's time)."""
    loop = asyncio.get_running_loop()
    while _is_alive(group):
        if loop.time() >= deadline:
            _signal(group, signal.SIGKILL)
        if loop.time() >= deadline + UNKILLABLE_S:
            _log.warning("process group %d does not die", group)
            return
        await asyncio.sleep(POLL_S)


def _is_alive(group: int) -> bool:
    """Whether anything of the group still runs; one that only waits to be reaped does not."""
    if not _signal(group, 0):
        return False
    if not _HAS_PROC:
        return True
    return any(member.group == group and not member.is_zombie for member in _processes())


def _is_survivor(started: Started) -> bool:
    """Whether that group is still the one that was started, and not a later user of its number."""
    now = _started(started.os_pid)
    if now is not None:
        return now == started.os_started
    # Its leader is gone. Ours was also the leader of a session, and its children are younger.
    return any(
        member.group == member.session == started.os_pid and member.started >= started.os_started
        for member in _processes()
    )


@dataclass(frozen=True)
class _Stat:
    """A process as /proc/<pid>/stat has it; started is in seconds since the machine's boot."""

    state: str
    group: int
    session: int
    started: float

    @property
    def is_zombie(self) -> bool:
        return self.state in "ZX"


def _stat(os_pid: int | str) -> _Stat | None:
    try:
        text = _PROC.joinpath(str(os_pid), "stat").read_text(errors="replace")
    except OSError:
        return None
    # Fields 3 and on: the second is the name in parentheses, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return _Stat(
        fields[0], int(fields[2]), int(fields[3]), int(fields[19]) / os.sysconf("SC_CLK_TCK")
    )


def _taken(os_pid: int) -> Taken:
    """Of a process and its descendants; pages that they share count for each."""
    cpu_s, rss_bytes = 0.0, 0
    try:
        first = psutil.Process(os_pid)
        family = [first, *first.children(recursive=True)]
    except psutil.Error:
        return Taken()
    for member in family:
        try:
            with member.oneshot():
                cpu_s += sum(member.cpu_times()[:4])  # its own, and of children that have ended
                rss_bytes += member.memory_info().rss
        except psutil.Error:
            continue  # it ended at this moment
    return Taken(round(cpu_s, 3), rss_bytes)


def _processes() -> Iterator[_Stat]:
    if not _HAS_PROC:
        return
    for name in os.listdir(_PROC):
        if name.isdecimal() and (stat := _stat(name)) is not None:
            yield stat


def _started(os_pid: int) -> float | None:
    """When it was started, in seconds: since boot with /proc, else since the epoch; None: gone."""
    if _HAS_PROC:
        stat = _stat(os_pid)
        return stat.started if stat else None
    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(os_pid)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": os.defpath},
        check=False,
    ).stdout.strip()
    return time.mktime(time.strptime(told)) if told else None


# --- logs -----------------------------------------------------------------------------------------


class Log:
    """What a program printed: files of *size* bytes, each named by the offset of its first one.

    A reader needs no word with the writer, nothing is ever renamed, and an offset stays true.
    """

    def __init__(self, directory: Path, size: int = LOG_BYTES) -> None:
        self._directory, self._file_bytes = directory, size
        self._is_failing = False
        self._newest: int | None = None  # the writer's: the file that it is at, and its size
        self._size = 0

    def _offsets(self) -> list[int]:
        try:
            return sorted(int(name.removesuffix(".log")) for name in os.listdir(self._directory))
        except FileNotFoundError:
            return []

    def _file(self, offset: int) -> Path:
        return self._directory / f"{offset}.log"

    def begin(self) -> None:
        """Have a log from now on, even if nothing is ever printed; never fails, as append."""
        self.append(b"")

    def append(self, data: bytes) -> None:
        """Never fails: a full disk must not end the program, so its output is lost instead."""
        try:
            self._append(data)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                _log.warning("output is lost: %s cannot be written: %s", self._directory, error)
            self._is_failing = True

    def _append(self, data: bytes) -> None:
        if self._newest is None:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._newest = max(self._offsets(), default=0)
            file = self._file(self._newest)
            self._size = file.stat().st_size if file.exists() else 0
        if self._size >= self._file_bytes:
            for old in self._offsets():
                if old < self._newest:
                    self._file(old).unlink(missing_ok=True)
            self._newest += self._size
            self._size = 0
        fd = os.open(self._file(self._newest), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            while data:
                written = os.write(fd, data)
                self._size += written
                data = data[written:]
        finally:
            os.close(fd)

    def text(self, offset: int, more_to_come: bool, most: int = READ_BYTES) -> tuple[str, int]:
        """From a byte offset on; a character that is not complete yet is left for the next time."""
        if offset < 0:
            raise InvalidCall(f"a log begins at offset 0, not at {offset}.")
        if not self._directory.is_dir():
            raise NotFound(
                f"process {self._directory.name} has no log, as the kernel started no program for "
                "it; what its caller's Python prints is printed there."
            )
        data = b""
        at = offset
        for first in self._offsets():
            try:
                with open(self._file(first), "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if first + size <= at:
                        continue
                    at = max(at, first)  # what came before it is no longer kept
                    file.seek(at - first)
                    part = file.read(most - len(data))
            except FileNotFoundError:  # it was the oldest, and went this moment
                continue
            data += part
            at += len(part)
            if len(data) == most:
                more_to_come = True
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, final=not more_to_come)
        return text, at - len(decoder.getstate()[0])


def _prune(logs: Path, most: int) -> None:
    """Remove the logs that were written to longest ago, until the rest is *most* bytes."""
    kept = 0
    found = [(file.stat().st_mtime, file.stat().st_size, file) for file in logs.glob("*/*.log")]
    for _, size, file in sorted(found, reverse=True):
        kept += size
        if kept > most:
            file.unlink(missing_ok=True)
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
