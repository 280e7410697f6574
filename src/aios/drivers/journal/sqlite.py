"""The journal in a SQLite file: one thread writes, in groups; another reads.

    append  -> the loop's list -> (end of the loop's turn) -> the writer's queue
    writer  -> takes all that is there, one transaction, one fdatasync -> answers the whole group

While a sync is running the next group gathers; nothing ever waits for company. What is answered is
on the disk (WAL, synchronous=FULL); a write that fails answers StoreFailed, and the next is tried
as if nothing had been.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import apsw

from aios.abi.calls import Pruning
from aios.abi.events import Event
from aios.drivers.journal.content import Content
from aios.drivers.journal.migrations import migrate
from aios.drivers.journal.pruning import prune
from aios.drivers.journal.questions import LAST, Questions, image
from aios.drivers.journal.reserve import RESERVE_BYTES, Reserve, holds_content
from aios.drivers.journal.rows import Rows
from aios.drivers.journal.troubles import UNREADABLE, sentence
from aios.errors import SetupError, StoreFailed
from aios.ports import CallEnd, CallRow, Image, Record, TokensRow

T = TypeVar("T")
Append = tuple[Sequence[Record], asyncio.Future[None]]
Step = Callable[[], None]

BUSY_MS = 5_000  # how long to wait for a person who has the file open in another program
QUIET_TURNS = 2  # of the loop: a task that was just woken appends in the second
GATHER_TURNS = 8  # of the loop, at most: under full load a group must leave as well
CHECKPOINT_PAGES = 4_000  # 16 MB of WAL: pages written again and again are copied once
READERS = 4  # at once: a long search does not hold up who follows the events


class SqliteJournal(Questions):
    """A ports.Journal in one file, made if it is not there; one kernel at a time may have it.

    SetupError says why it cannot be opened: in use, from a newer aios, no database, no access.
    """

    def __init__(
        self,
        path: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        checkpoint_pages: int = CHECKPOINT_PAGES,
        vfs: str | None = None,  # of SQLite: how it reaches the disk
    ) -> None:
        self._path, self._vfs = path, vfs
        self._lock = _lock(path)
        self._reserve = Reserve(path.with_suffix(".reserve"), reserve_bytes)
        self._reserve.release()  # opening takes a few blocks, on a full disk as well
        try:
            self._connection, self._last_seq = _open(path, vfs)
        except BaseException:
            os.close(self._lock)
            raise
        self.content = Content(self._connection)
        self._checkpoint_pages = self._checkpoint_at = checkpoint_pages
        self._log_pages = 0
        self._connection.set_wal_hook(self._note_log)
        self._reserve.make()
        self._unbegun: set[str] = set()  # calls whose start could not be written
        self._waiting: list[Append] = []  # appended in this turn of the loop
        self._queue: queue.SimpleQueue[list[Append] | Step | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(READERS, "journal-reader")
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()  # connections of readers
        self._pruning = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<SqliteJournal {self._path}{' closed' if self._closed else ''}>"

    # --- writing ----------------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._closed:
            _answer([future], f"the journal {self._path} is closed: start the kernel again.")
            return future
        if not self._waiting:
            loop.call_soon(self._gather, loop, 0, 0, GATHER_TURNS)
        self._waiting.append((records, future))
        return future

    def _gather(self, loop: asyncio.AbstractEventLoop, before: int, quiet: int, turns: int) -> None:
        """Hand over when the loop has turned without news: all who can append now have."""
        here = len(self._waiting)
        quiet = 0 if here > before else quiet + 1
        if quiet < QUIET_TURNS and turns:
            loop.call_soon(self._gather, loop, here, quiet, turns - 1)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            group, self._waiting = self._waiting, []
            self._queue.put(group)

    def _write(self) -> None:
        """The writer: until None, take what is there, commit it, answer it."""
        taken: list[Append] | Step | None = []
        while taken is not None:
            group: list[Append] = []
            taken = self._queue.get()
            while isinstance(taken, list):
                group += taken
                if self._queue.empty():  # only this thread takes
                    break
                taken = self._queue.get()
            if group:
                self._commit_group(group)
            if callable(taken):
                taken()
            if self._log_pages >= self._checkpoint_at:
                self._checkpoint()

    def _note_log(self, connection: Any, name: str, pages: int) -> int:
        """After a commit: how long the write-ahead log is."""
        if pages < self._log_pages:  # it has begun anew
            self._checkpoint_at = self._checkpoint_pages
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Copy the log into the file, after the group has its answers: they need not wait for it.

        A reader that is in the way is not waited for; then the log grows by as much again.
        """
        self._checkpoint_at = self._log_pages + self._checkpoint_pages
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error:
            pass  # nothing is lost; a disk that fails is told by the next write

    def _commit_group(self, group: list[Append]) -> None:
        whole = [records for records, _ in group]
        if not self._unbegun and self._reserve.make() and self._commit(whole) is None:
            _answer_there([future for _, future in group], None)
            return
        for records, future in group:  # one at a time, so that it fails only those concerned
            error = self._commit_one(records)
            if error is not None:
                self._unbegun |= {row.id for row in records if isinstance(row, CallRow)}
            trouble = None if error is None else sentence(self._path, error)
            _answer_there([future], trouble)

    def _commit_one(self, records: Sequence[Record]) -> Exception | None:
        try:
            kept = self._begun(records)
        except StoreFailed as unbegun:
            return unbegun
        if not self._reserve.make() and holds_content(kept):
            return apsw.FullError("only what ends or deletes something is written")
        error = self._commit([kept])
        if isinstance(error, apsw.FullError) and not holds_content(kept):
            self._make_room()
            error = self._commit([kept])
        return error

    def _begun(self, records: Sequence[Record]) -> Sequence[Record]:
        """Without what belongs to calls that were never begun here: what fails leaves no trace.

        Such a call cannot be done: nobody would know of it, and it could be done a second time.
        """
        if not self._unbegun:
            return records
        ends = {r.id: r for r in records if isinstance(r, CallEnd) and r.id in self._unbegun}
        if done := [call for call, end in ends.items() if end.state == "done"]:
            raise StoreFailed(
                f"the start of call {done[0]} could not be written to {self._path}, so its end is "
                "not either: make the call again."
            )
        kept = [record for record in records if _call_of(record) not in self._unbegun]
        self._unbegun -= ends.keys()
        return kept

    def _make_room(self) -> None:
        """On a full disk: with what was set aside the log can be copied, and begins anew."""
        self._reserve.release()
        self._connection.set_busy_timeout(0)  # a reader that is in the way: then as far as it goes
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.Error:
            pass  # the next write tells whether there is room
        finally:
            self._connection.set_busy_timeout(BUSY_MS)

    def _commit(self, appends: Sequence[Sequence[Record]]) -> Exception | None:
        """One transaction; None when it is durable, else what went wrong."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            rows = Rows(self._connection, self.content, self._last_seq)
            for records in appends:
                rows.take(records)
            rows.write()
            execute("COMMIT")
            self._last_seq = rows.last_seq
        except Exception as error:  # noqa: BLE001 (whatever it was, those who wait must hear it)
            self._roll_back()
            return error
        return None

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:  # SQLite may have rolled back by itself
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            pass  # the next BEGIN says what is wrong, to somebody who can be told
        self.content.forget()

    async def step(self, work: Callable[[Any], T]) -> T:
        """Have the writer do this between two groups, in a transaction of its own."""
        outcome: Future[T] = Future()

        def run() -> None:
            error, result = self._do(work)
            if isinstance(error, apsw.FullError):
                self._make_room()
                error, result = self._do(work)
            if error is None:
                outcome.set_result(result)
            elif isinstance(error, UNREADABLE):
                outcome.set_exception(StoreFailed(sentence(self._path, error)))
            else:
                outcome.set_exception(error)

        self._check_open()
        self._queue.put(run)
        return await asyncio.wrap_future(outcome)

    def _do(self, work: Callable[[Any], T]) -> tuple[Exception | None, Any]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 (who waits for it must hear it)
            self._roll_back()
            return error, None
        return None, result

    async def prune(self, before: float, max_bytes: int | None) -> Pruning:
        async with self._pruning:
            return await prune(self, before, max_bytes)

    # --- reading ----------------------------------------------------------------------------------

    def load(self) -> Image:
        connection = _connect(self._path, apsw.SQLITE_OPEN_READONLY, self._vfs)
        try:
            with connection:  # one transaction: a consistent whole
                return image(connection)
        except UNREADABLE as error:
            raise StoreFailed(sentence(self._path, error)) from error
        finally:
            connection.close()

    async def read(self, query: Callable[[Any], T]) -> T:
        def run() -> T:
            try:
                connection = self._reading()
                try:
                    with connection:
                        return query(connection)
                finally:
                    self._idle.put(connection)
            except UNREADABLE as error:
                raise StoreFailed(sentence(self._path, error)) from error

        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed(f"the journal {self._path} is closed: start the kernel again.")

    def _reading(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _connect(self._path, apsw.SQLITE_OPEN_READONLY, self._vfs)

    def wal_bytes(self) -> int:
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except OSError:
            return 0  # all of it is in the file

    # --- the end ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what was appended, then let go of the file; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        self._queue.put(None)
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        self._writer.join()
        self._readers.shutdown()
        while not self._idle.empty():
            self._idle.get().close()
        _close(self._connection)
        os.close(self._lock)


# --- opening --------------------------------------------------------------------------------------


def _call_of(record: Record) -> str | None:
    """The call that a record belongs to."""
    match record:
        case CallEnd():
            return record.id
        case TokensRow():
            return record.call
        case Event():
            return getattr(record, "call", None)
    return None


def _lock(path: Path) -> int:
    """A lock beside *path*, held until its descriptor is closed or its process is gone."""
    beside = path.with_suffix(".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SetupError(
            f"{beside} cannot be made ({error.strerror}): check the directory."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError as error:
        holder = os.read(descriptor, 20).decode(errors="replace") or "unknown"
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise SetupError(f"{beside} cannot be locked: {error.strerror}.") from error
        raise SetupError(
            f"{path} is in use by the process {holder}: stop that kernel with `aios down`, or set "
            "AIOS_HOME to another directory."
        ) from error
    return descriptor


def _open(path: Path, vfs: str | None) -> tuple[Any, int]:
    """The writer's connection, its file made or brought up to date, and its last event's number."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite would let others read it
        connection = _connect(path, apsw.SQLITE_OPEN_READWRITE, vfs)
    except (OSError, apsw.Error) as error:
        _refuse(path, error)
    try:
        connection.pragma("synchronous", "EXTRA")  # else the switch to WAL is not power-safe
        connection.pragma("journal_mode", "WAL")
        connection.pragma("secure_delete", True)  # what is deleted is overwritten
        migrate(connection, path)
        connection.pragma("synchronous", "FULL")
        last_seq = next(connection.execute(LAST))[0]
    except (OSError, apsw.Error) as error:
        _close(connection)
        _refuse(path, error)
    except SetupError:
        _close(connection)
        raise
    return connection, last_seq


def _connect(path: Path, mode: int, vfs: str | None) -> Any:
    connection = apsw.Connection(str(path), flags=mode, vfs=vfs)
    connection.set_busy_timeout(BUSY_MS)
    return connection


def _close(connection: Any) -> None:
    try:
        connection.close()
    except apsw.Error:
        pass  # the log could not be copied into the file: the next to open it does that


def _refuse(path: Path, error: Exception) -> NoReturn:
    if isinstance(error, OSError):
        raise SetupError(
            f"{path} cannot be opened ({error.strerror}): check its rights."
        ) from error
    raise SetupError(sentence(path, error)) from error


# --- answers --------------------------------------------------------------------------------------


def _answer_there(futures: list[asyncio.Future[None]], trouble: str | None) -> None:
    """Answer from the writer's thread, with one wake-up for each loop (there is one)."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
    for future in futures:
        loops[future.get_loop()].append(future)
    for loop, waiting in loops.items():
        try:
            loop.call_soon_threadsafe(_answer, waiting, trouble)
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more


def _answer(futures: list[asyncio.Future[None]], trouble: str | None) -> None:
    for future in futures:
        if future.done():
            continue  # its caller was cancelled
        if trouble is None:
            future.set_result(None)
        else:
            future.set_exception(StoreFailed(trouble))
            future.exception()  # seen: nobody needs to await it
