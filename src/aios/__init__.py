"""aios: an operating system for LLM agents.

The names below are what an agent's author needs. They are loaded when they are first used, so that
``import aios`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aios.abi.calls import Limits
    from aios.abi.messages import Message, ToolSpec
    from aios.errors import AiosError
    from aios.sdk.agent import Agent, agent
    from aios.sdk.answer import Answer, Stream
    from aios.sdk.connection import connect
    from aios.sdk.process import Me, Process
    from aios.sdk.programs import Program
    from aios.sdk.recall import recall
    from aios.sdk.steps import now, random, step
    from aios.sdk.sync import connect_sync
    from aios.sdk.tools import Tool, tool

_WHERE = {
    "Agent": "aios.sdk.agent",
    "AiosError": "aios.errors",
    "Answer": "aios.sdk.answer",
    "Limits": "aios.abi.calls",
    "Me": "aios.sdk.process",
    "Message": "aios.abi.messages",
    "Process": "aios.sdk.process",
    "Program": "aios.sdk.programs",
    "Stream": "aios.sdk.answer",
    "Tool": "aios.sdk.tools",
    "ToolSpec": "aios.abi.messages",
    "agent": "aios.sdk.agent",
    "connect": "aios.sdk.connection",
    "connect_sync": "aios.sdk.sync",
    "now": "aios.sdk.steps",
    "random": "aios.sdk.steps",
    "recall": "aios.sdk.recall",
    "step": "aios.sdk.steps",
    "tool": "aios.sdk.tools",
}

__all__ = [
    "Agent",
    "AiosError",
    "Answer",
    "Limits",
    "Me",
    "Message",
    "Process",
    "Program",
    "Stream",
    "Tool",
    "ToolSpec",
    "agent",
    "connect",
    "connect_sync",
    "now",
    "random",
    "recall",
    "step",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'aios' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
