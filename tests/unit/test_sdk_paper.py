"""The paper's tables, walked: each of its system calls and SDK functions is here by its name."""

from __future__ import annotations

import inspect

import pytest

from aios.abi.calls import CALLS
from aios.sdk import paper, syscalls

SYSTEM_CALLS = {  # table 2, with the arguments that it names
    "get_aid": (),
    "set_aid": ("aid",),
    "get_status": ("aid",),
    "set_status": ("aid", "status"),
    "get_priority": ("aid",),
    "set_priority": ("aid", "priority"),
    "suspend_agent": ("aid",),
    "resume_agent": ("aid",),
    "gen_snapshot": (),
    "gen_restore": ("snapshot",),
    "get_context": (),
    "exp_context": (),
    "clr_context": (),
    "set_context": ("messages",),
    "mem_write": ("aid", "record"),
    "mem_read": ("aid", "record"),
    "mem_clear": ("aid", "record"),
    "mem_alloc": ("aid", "size"),
    "sto_write": ("aid", "record"),
    "sto_read": ("aid", "record"),
    "sto_delete": ("aid", "record"),
    "sto_alloc": ("aid", "size"),
}
FUNCTIONS = (  # table 3
    "initialize_agent",
    "register_agent",
    "queue_for_execution",
    "generate_plan",
    "terminate_agent",
    "create_agent_snapshot",
    "rollback_agent_state",
    "update_agent_config",
    "authenticate_agent",
    "monitor_resource_usage",
    "log_event",
    "list_active_agents",
    "query_agent_history",
    "encrypt_data",
    "decrypt_data",
)


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_a_system_call_of_table_2(name: str) -> None:
    function = getattr(syscalls, name)
    assert inspect.iscoroutinefunction(function)
    assert (
        tuple(inspect.signature(function).parameters)[: len(SYSTEM_CALLS[name])]
        == (SYSTEM_CALLS[name])
    )
    assert name in CALLS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_sdk_function_of_table_3(name: str) -> None:
    function = getattr(paper, name)
    assert inspect.isfunction(function)
    assert function.__module__ == paper.__name__
    assert function.__doc__


@pytest.mark.parametrize(("module", "names"), [(syscalls, SYSTEM_CALLS), (paper, FUNCTIONS)])
def test_and_nothing_else_is_called_so(module: object, names: tuple[str, ...]) -> None:
    own = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__  # type: ignore[attr-defined]
        and not name.startswith("_")
    }
    assert own == set(names)
