"""Who may do what to what: the grants table, and the one function that asks it.

A grant is (holder, action, resource, until). Holders are ``pid:7`` and ``user:ann``; an action is
a call's name or ``*``; resources are ``tree:7`` (process 7 and its descendants), ``user:ann`` (all
of her processes) and ``machine`` (the scheduler, the keys, the kernel itself). A process acts on
its own grants and, if it was opened by a user's key, on that user's.

What one may not see is NotFound, not PermissionDenied: the answer must not tell that it exists.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from aios.abi.calls import SpawnAgent
from aios.errors import NotFound, PermissionDenied
from aios.kernel.process import Process
from aios.ports import GrantRow

ANY = "*"
MACHINE = "machine"


class Grants:
    """The rights that are held now."""

    def __init__(self, rows: Iterable[GrantRow] = ()) -> None:
        self._held: dict[tuple[str, str], dict[str, float | None]] = {}
        self._resources: dict[str, dict[str, None]] = {}  # by holder, in order
        for row in rows:
            self.add(row)

    def add(self, row: GrantRow) -> GrantRow:
        self._held.setdefault((row.holder, row.resource), {})[row.action] = row.expires_at
        self._resources.setdefault(row.holder, {})[row.resource] = None
        return row

    def remove(self, holder: str, action: str, resource: str) -> GrantRow | None:
        """Take a grant back; it, or None if there was none."""
        actions = self._held.get((holder, resource), {})
        if action not in actions:
            return None
        row = GrantRow(holder, action, resource, actions.pop(action))
        if not actions:
            del self._held[holder, resource], self._resources[holder][resource]
        return row

    def drop(self, holder: str) -> None:
        for resource in self._resources.pop(holder, ()):
            del self._held[holder, resource]

    def resources(self, holder: str, action: str, now: float) -> list[str]:
        """What it may do this to, by grants of its own."""
        return [r for r in self._resources.get(holder, ()) if self.allows(holder, action, r, now)]

    def allows(self, holder: str, action: str, resource: str, now: float) -> bool:
        actions = self._held.get((holder, resource))
        if not actions:
            return False
        for name in (action, ANY):
            if name in actions:
                until = actions[name]
                if until is None or until > now:
                    return True
        return False


def holders(process: Process) -> list[str]:
    """On whose rights a process acts: its own, and its user's if it is a login process."""
    own = f"pid:{process.pid}"
    return [own, f"user:{process.user}"] if process.parent is None else [own]


def check(grants: Grants, caller: Process, action: str, target: Process | None, now: float) -> None:
    """Raise unless *caller* may do *action* to *target* (None: the machine).

    PermissionDenied for what it may see but not do, NotFound for what it may not see. To end itself
    a process needs no right.
    """
    if caller.rights is not None and action not in caller.rights and action != "exit_agent":
        raise PermissionDenied(
            f"process {caller.pid} has no right to {action}; "
            f"it may {', '.join(sorted(caller.rights)) or 'do nothing'}."
        )
    if target is caller and grants.allows(f"pid:{caller.pid}", action, f"tree:{caller.pid}", now):
        return  # the usual case
    who = holders(caller)
    if target is None:
        if any(grants.allows(holder, action, MACHINE, now) for holder in who):
            return
        raise PermissionDenied(
            f"process {caller.pid} may not {action}: that is for a user's own key, not a process's."
        )
    resources = [f"user:{target.user}"]
    process: Process | None = target
    while process is not None:
        resources.append(f"tree:{process.pid}")
        process = process.parent
    if any(
        grants.allows(holder, action, resource, now) for holder in who for resource in resources
    ):
        return
    raise no_process(target.pid)


def sees(grants: Grants, caller: Process, target: Process, now: float) -> bool:
    try:
        check(grants, caller, "get_status", target, now)
    except (PermissionDenied, NotFound):
        return False
    return True


def no_process(pid: int) -> NotFound:
    return NotFound(f"there is no process {pid} that you may see; `aios ps -a` lists yours.")


def asked(spawned: SpawnAgent) -> frozenset[str]:
    """The rights that a process is spawned with: those named, and what they cannot do without.

    To generate is to keep one's contexts within their window, by the strategy that was chosen.
    """
    named = frozenset(spawned.rights or ())
    if "generate" not in named:
        return named
    paging = {"mem_write"} if spawned.strategy == "page" else set()
    return named | {"compact_context"} | paging


def mint() -> str:
    """A new bearer key: 256 random bits."""
    return f"aios_{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """What is stored of a key: its SHA-256 (the key is random, so no salt is needed)."""
    return hashlib.sha256(key.encode()).hexdigest()
