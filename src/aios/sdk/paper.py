"""The SDK functions of the paper's table 3, in Python's spelling (arXiv 2403.16971, version 1).

They are thin: each names the method of the SDK that does its work. The system calls of its table 2
are in ``aios.sdk.syscalls``.
"""

from __future__ import annotations

from typing import Any

from aios.abi.calls import (
    AgentSnapshot,
    CallRecord,
    Exit,
    Limits,
    RolledBack,
    Status,
    UsageReport,
)
from aios.sdk import programs
from aios.sdk.connection import connect
from aios.sdk.process import Me, Process
from aios.sdk.programs import Program


def initialize_agent(name: str, *, cwd: str | None = None) -> Program:
    """Find a program and settle what it may use; nothing runs yet."""
    return programs.find(name, cwd)


async def register_agent(me: Me, name: str, task: str = "", **options: Any) -> Me:
    """Give an agent that your own Python runs an aid, rights and a key."""
    return await me.register(name, task, **options)


async def queue_for_execution(
    me: Me, program: str | Program, task: str = "", **options: Any
) -> Process:
    """Start a program: from now on the scheduler decides when its calls run."""
    return await me.spawn(program, task, **options)


async def generate_plan(me: Me, task: str, *, steps: int = 5, **options: Any) -> list[str]:
    """A plan of at most *steps* steps, made by the model."""
    schema = {
        "type": "array",
        "items": {"type": "string", "maxLength": 120},
        "minItems": 1,
        "maxItems": steps,
    }
    answer = await me.generate(
        f"Task: {task}\nWrite a plan of at most {steps} short steps as a JSON list of strings.",
        schema=schema,
        **options,
    )
    return list(answer.data)


async def terminate_agent(process: Process, reason: str = "terminated") -> Exit:
    """End a process and its descendants."""
    return await process.kill(reason)


async def create_agent_snapshot(process: Process, label: str = "") -> AgentSnapshot:
    """Remember an agent as it is now: contexts, records, files, its place in its program."""
    return await process.take_snapshot(label)


async def rollback_agent_state(process: Process, snapshot: str | AgentSnapshot) -> RolledBack:
    """Take an agent back to a snapshot; what it did outside since is listed, not undone."""
    return await process.rollback(snapshot)


async def update_agent_config(
    process: Process,
    *,
    priority: int | None = None,
    budget: Limits | None = None,
    note: str | None = None,
) -> Status:
    """Change what is given and nothing else."""
    if priority is not None:
        await process.set_priority(priority)
    if budget is not None:
        await process.set_budget(tokens=budget.tokens, seconds=budget.seconds, calls=budget.calls)
    if note is not None:
        await process.note(note)
    return await process.status()


async def authenticate_agent(key: str, *, url: str | None = None) -> int:
    """The aid that a key stands for; Unauthenticated if it is no key here."""
    async with connect(url, key) as me:
        return me.aid


async def monitor_resource_usage(process: Process) -> UsageReport:
    """What a process has spent and what is left, in tokens, seconds, calls, bytes and CPU time."""
    return await process.usage()


async def log_event(me: Me, name: str, data: Any = None) -> None:
    """Put an event of one's own into the trace."""
    await me.log_event(name, data)


async def list_active_agents(me: Me) -> tuple[Status, ...]:
    """The processes that live and that this one may see."""
    return await me.processes()


async def query_agent_history(process: Process, **filters: Any) -> tuple[CallRecord, ...]:
    """What an agent asked and what came back; filters are those of ``Process.transcript``."""
    return await process.transcript(**filters)


async def encrypt_data(me: Me, data: bytes | str) -> str:
    """Seal data under the user's key."""
    return await me.encrypt(data)


async def decrypt_data(me: Me, token: str) -> bytes:
    """Open what was sealed; InvalidCall if it was changed or is another user's."""
    return await me.decrypt(token)
