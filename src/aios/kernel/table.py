"""The system call table: for each call its handler, its target and how the door treats it.

effect: none (may be made again freely), idempotent (again with the same result), once (never
twice). target: whose resource it touches: ``self``, ``aid`` (a process, the caller if None) or
``machine``. waits: a suspended process's call waits until it goes on (all but those that end what
was begun). charged: it counts against a budget of calls. looks: it only looks; what a person looks
at leaves no trace (``top`` would fill the journal), what a program reads is kept for its replay.
replayed: a second life is given its recorded reply; recall: what is done to such a reply first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aios.abi import calls as abi
from aios.abi.messages import Effect
from aios.kernel.calls import (
    access,
    agent,
    context,
    cores,
    lives,
    machine,
    memory,
    secrets,
    storage,
    tools,
)
from aios.kernel.process import OpenCall, Process

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel

Handler = Callable[["Kernel", OpenCall, Process, Any], Awaitable[abi.Reply]]
Recall = Callable[["Kernel", Process, Any, Any], Awaitable[abi.Reply]]
Target = Literal["self", "aid", "machine"]


class Entry(NamedTuple):
    handler: Handler
    target: Target
    effect: Effect
    waits: bool = True
    charged: bool = False
    looks: bool = False
    replayed: bool = True
    recall: Recall | None = None


SYSTEM_CALLS: dict[type[abi.Call], Entry] = {
    # processes
    abi.GetAid: Entry(agent.sys_get_aid, "self", "none", looks=True),
    abi.SetAid: Entry(agent.sys_set_aid, "aid", "idempotent"),
    abi.GetStatus: Entry(agent.sys_get_status, "aid", "none", looks=True),
    abi.SetStatus: Entry(agent.sys_set_status, "aid", "idempotent"),
    abi.GetPriority: Entry(agent.sys_get_priority, "aid", "none", looks=True),
    abi.SetPriority: Entry(agent.sys_set_priority, "aid", "idempotent"),
    abi.SuspendAgent: Entry(agent.sys_suspend_agent, "aid", "idempotent"),
    abi.ResumeAgent: Entry(agent.sys_resume_agent, "aid", "idempotent"),
    abi.SpawnAgent: Entry(
        agent.sys_spawn_agent, "self", "once", charged=True, recall=lives.keyed_again
    ),
    abi.ExitAgent: Entry(agent.sys_exit_agent, "self", "once", waits=False, replayed=False),
    abi.KillAgent: Entry(agent.sys_kill_agent, "aid", "idempotent"),
    abi.WaitAgent: Entry(agent.sys_wait_agent, "aid", "none"),
    abi.ListAgents: Entry(agent.sys_list_agents, "self", "none", looks=True),
    abi.ForkAgent: Entry(
        lives.sys_fork_agent, "aid", "once", charged=True, recall=lives.keyed_again
    ),
    abi.SnapshotAgent: Entry(lives.sys_snapshot_agent, "aid", "idempotent"),
    abi.ListSnapshots: Entry(lives.sys_list_snapshots, "aid", "none", looks=True),
    abi.RollbackAgent: Entry(lives.sys_rollback_agent, "aid", "once"),
    abi.SettleCall: Entry(lives.sys_settle_call, "aid", "idempotent"),
    abi.SetBudget: Entry(agent.sys_set_budget, "aid", "idempotent"),
    abi.GetUsage: Entry(agent.sys_get_usage, "aid", "none", looks=True),
    abi.SendMessage: Entry(agent.sys_send_message, "self", "once", charged=True),
    abi.RecvMessage: Entry(agent.sys_recv_message, "self", "once"),
    abi.Record: Entry(agent.sys_record, "self", "idempotent"),
    # generation and contexts
    abi.Generate: Entry(context.sys_generate, "self", "idempotent", charged=True),
    abi.GenSnapshot: Entry(context.sys_gen_snapshot, "aid", "idempotent"),
    abi.GenRestore: Entry(context.sys_gen_restore, "self", "idempotent", charged=True),
    abi.GetContext: Entry(context.sys_get_context, "aid", "none", looks=True),
    abi.ExpContext: Entry(context.sys_exp_context, "aid", "idempotent"),
    abi.ClrContext: Entry(context.sys_clr_context, "aid", "idempotent"),
    abi.SetContext: Entry(context.sys_set_context, "aid", "idempotent"),
    abi.CompactContext: Entry(context.sys_compact_context, "aid", "idempotent"),
    # memory
    abi.MemAlloc: Entry(memory.sys_mem_alloc, "aid", "idempotent"),
    abi.MemWrite: Entry(memory.sys_mem_write, "aid", "idempotent"),
    abi.MemRead: Entry(memory.sys_mem_read, "aid", "none", looks=True),
    abi.MemUpdate: Entry(memory.sys_mem_update, "aid", "idempotent"),
    abi.MemClear: Entry(memory.sys_mem_clear, "aid", "idempotent"),
    abi.MemSearch: Entry(memory.sys_mem_search, "aid", "none", looks=True),
    abi.MemShare: Entry(memory.sys_mem_share, "aid", "idempotent"),
    abi.Embed: Entry(memory.sys_embed, "self", "none", looks=True),
    # storage
    abi.StoAlloc: Entry(storage.sys_sto_alloc, "aid", "idempotent"),
    abi.StoWrite: Entry(storage.sys_sto_write, "aid", "idempotent", recall=storage.written_again),
    abi.StoRead: Entry(storage.sys_sto_read, "aid", "none", looks=True, recall=storage.read_again),
    abi.StoDelete: Entry(storage.sys_sto_delete, "aid", "idempotent"),
    abi.StoList: Entry(storage.sys_sto_list, "aid", "none", looks=True),
    abi.StoMove: Entry(storage.sys_sto_move, "aid", "idempotent"),
    abi.StoSearch: Entry(storage.sys_sto_search, "aid", "none", looks=True),
    abi.StoHistory: Entry(storage.sys_sto_history, "aid", "none", looks=True),
    abi.StoDiff: Entry(storage.sys_sto_diff, "aid", "none", looks=True),
    abi.StoRollback: Entry(storage.sys_sto_rollback, "aid", "idempotent"),
    abi.StoCommit: Entry(storage.sys_sto_commit, "aid", "idempotent"),
    abi.StoMount: Entry(storage.sys_sto_mount, "aid", "idempotent"),
    abi.StoShare: Entry(storage.sys_sto_share, "aid", "idempotent"),
    # tools
    abi.ToolRegister: Entry(tools.sys_tool_register, "self", "idempotent", replayed=False),
    abi.ToolList: Entry(tools.sys_tool_list, "aid", "none", looks=True),
    abi.ToolCall: Entry(tools.sys_tool_call, "self", "once", charged=True),
    abi.ToolNext: Entry(tools.sys_tool_next, "self", "once", waits=False, replayed=False),
    abi.ToolReturn: Entry(tools.sys_tool_return, "self", "once", waits=False, replayed=False),
    # secrets
    abi.EncryptData: Entry(secrets.sys_encrypt_data, "self", "none"),
    abi.DecryptData: Entry(secrets.sys_decrypt_data, "self", "none", recall=secrets.opened_again),
    # what is known of a process, and the machine itself
    abi.LogEvent: Entry(machine.sys_log_event, "self", "idempotent"),
    abi.GetTranscript: Entry(machine.sys_get_transcript, "aid", "none", looks=True),
    abi.GetLog: Entry(machine.sys_get_log, "aid", "none", looks=True),
    abi.GetScheduler: Entry(machine.sys_get_scheduler, "self", "none", looks=True),
    abi.SetScheduler: Entry(machine.sys_set_scheduler, "machine", "idempotent"),
    abi.GetJournal: Entry(machine.sys_get_journal, "machine", "none", looks=True),
    abi.PruneJournal: Entry(machine.sys_prune_journal, "machine", "idempotent"),
    # cores
    abi.CoreList: Entry(cores.sys_core_list, "self", "none", looks=True),
    abi.CoreAdd: Entry(cores.sys_core_add, "machine", "once"),
    abi.CoreDrain: Entry(cores.sys_core_drain, "machine", "idempotent"),
    abi.CoreRemove: Entry(cores.sys_core_remove, "machine", "once"),
    # keys
    abi.KeyNew: Entry(access.sys_key_new, "machine", "once"),
    abi.KeyRevoke: Entry(access.sys_key_revoke, "machine", "idempotent"),
    abi.KeyList: Entry(access.sys_key_list, "machine", "none", looks=True),
}
