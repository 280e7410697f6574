"""Keys: who stands at the door. Only their hashes are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from aios.abi import calls as abi
from aios.abi import events as ev
from aios.abi.calls import KeyInfo, SpawnAgent
from aios.errors import Unauthenticated
from aios.kernel import access
from aios.kernel.process import Process
from aios.ports import KeyGone, KeyRow

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


class Keys:
    """Keys by their hash, and the login process of each user."""

    def __init__(self, kernel: Kernel, rows: Iterable[KeyRow]) -> None:
        self._kernel = kernel
        self.table = {row.hash: row for row in rows if row.info.revoked_at is None}
        self._logins: dict[tuple[str, str | None], int] = {}

    def __iter__(self) -> Iterator[KeyRow]:
        return iter(list(self.table.values()))

    def login_of(self, user: str, session: str | None = None) -> Process | None:
        """A user's living login process, if there is one."""
        login = self._kernel.processes.get(self._logins.get((user, session), 0))
        return login if login is not None and login.state != "zombie" else None

    def renumber(self, old: int, new: int) -> list[KeyRow]:
        """A process got another number: its key goes with it."""
        moved = []
        for row in self:
            if row.info.aid == old:
                info = msgspec.structs.replace(row.info, aid=new)
                self.table[row.hash] = KeyRow(info, row.hash)
                moved.append(self.table[row.hash])
        return moved

    def issue(self, user: str, label: str, process: Process | None) -> abi.NewKey:
        """A new key, of a user or of one process; only its hash is kept."""
        key = access.mint()
        hash = access.digest(key)
        info = KeyInfo(
            id=hash[:12],
            user=user,
            label=label,
            aid=process.pid if process else None,
            created_at=self._kernel.clock.now(),
        )
        self.table[hash] = KeyRow(info, hash)
        if process is not None:
            process.key_id = hash
        self._kernel.trace.emit(
            ev.KeyIssued, process.pid if process else 0, self.table[hash], key=info.id
        )
        return abi.NewKey(info.id, key)

    def revoke(self, hash: str, by: int) -> None:
        row = self.table.pop(hash)
        info = KeyInfo(
            row.info.id,
            row.info.user,
            row.info.label,
            row.info.aid,
            row.info.created_at,
            self._kernel.clock.now(),
        )
        self._kernel.trace.emit(ev.KeyRevoked, by, KeyRow(info, hash), key=info.id)

    def renew(self, process: Process) -> str:
        """A new key for a process whose program starts again; the old one is forgotten."""
        if row := self.table.pop(process.key_id or "", None):
            self._kernel.trace.record(KeyGone(row.info.id))
        return self.issue(process.user, f"process {process.pid}", process).key

    def restore(self, process: Process) -> None:
        """A process of a dead kernel has the key that it had, and a login its place."""
        for row in self.table.values():
            if row.info.aid == process.pid:
                process.key_id = row.hash
        if process.parent is None and process.state != "zombie":
            session = process.program.removeprefix("login").strip() or None
            self._logins[process.user, session] = process.pid

    def login(self, user: str, session: str | None = None) -> Process:
        """A user's login process, made if there is none."""
        login = self.login_of(user, session)
        if login is None:
            program = "login" if session is None else f"login {session}"[:80]
            login = self._kernel.processes.create(user, None, SpawnAgent(program=program))
            self._logins[user, session] = login.pid
        return login

    def revoke_of(self, process: Process) -> None:
        if process.key_id in self.table:
            self.revoke(process.key_id, process.pid)

    def ensure(self, user: str, *, renew: bool = False) -> str | None:
        """A fresh key for a user who has none yet (or, with *renew*, lost the file it was in)."""
        has = any(
            k.info.user == user and k.info.aid is None and not k.info.revoked_at
            for k in self.table.values()
        )
        if has and not renew:
            return None
        return self.issue(user, "first", None).key

    def identify(self, key: str, session: str | None = None) -> int:
        """The process that a bearer key is; a user's key is that user's login, one per session."""
        row = self.table.get(access.digest(key))
        if row is None or row.info.revoked_at is not None:
            raise Unauthenticated(
                "this key is not known here, or was revoked; `aios key new` makes one."
            )
        if row.info.aid is not None:
            return row.info.aid
        return self.login(row.info.user, session).pid
