"""One LLM call, seven stops: the modules that a call enters, in order, and no others."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import FrameType

import aios
from aios.config import Server
from aios.server.app import App
from aios.server.listener import Listener
from aios.testing import machine

TOUR = Path(__file__).parents[2] / "docs" / "tour.md"
STOPS = {
    "1 the SDK makes a Generate and sends it": [
        "aios.sdk.process",
        "aios.sdk.request",
        "aios.sdk.place",
        "aios.sdk.link",
        "aios.abi.wire",
    ],
    "2 the server turns bytes into data and the key into a pid": [
        "aios.server.listener",
        "aios.server.app",
        "aios.server.exchange",
        "aios.server.edge",
        "aios.kernel.kernel",
        "aios.kernel.keys",
        "aios.kernel.access",
        "aios.kernel.processes",
        "aios.server.native",
    ],
    "3 the trap finds the process and opens the trace": [
        "aios.kernel.lives",
        "aios.kernel.process",
        "aios.abi.calls",
        "aios.drivers.clock",
        "aios.kernel.kept",
        "aios.kernel.trace",
    ],
    "4 may it, can it afford it (access was entered at 2, for the key)": ["aios.kernel.budget"],
    "5 sys_generate puts the messages into the context and makes a ticket": [
        "aios.kernel.calls.context",
        "aios.kernel.generation",
        "aios.kernel.routing",
        "aios.kernel.retrieval",
    ],
    "6 the scheduler grants slices": ["aios.kernel.scheduler"],
    "7 the core runs them; its tokens come back up": [
        "aios.testing",
        "aios.abi.messages",
        "aios.kernel.policies",
        "aios.drivers.journal.memory",  # all that was said in this turn of the loop, at once
        "aios.drivers.journal.rows",
        "aios.drivers.journal.content",
        "aios.sdk.answer",
    ],
}


async def test_a_call_enters_these_modules_in_this_order(tmp_path: Path) -> None:
    async with machine(script=["Paris."]) as kernel:
        path = str(tmp_path / "s")
        listener = Listener(App(kernel, Server(), lambda: None))
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path)
            await listener.open([unix])
            async with aios.connect(f"unix:{path}", kernel.user_key) as me:
                await me.generate("Warm up.", context=None)
                entered: list[str] = []

                def note(frame: FrameType, event: str, argument: object) -> None:
                    name = str(frame.f_globals.get("__name__", ""))
                    if event == "call" and name.startswith("aios.") and name not in entered:
                        entered.append(name)

                sys.setprofile(note)
                try:
                    await me.generate("Capital of France?", context=None)
                finally:
                    sys.setprofile(None)
            await listener.close(1)
    assert entered == [module for stop in STOPS.values() for module in stop]


def test_the_tour_passes_every_one_of_these_files() -> None:
    tour = TOUR.read_text()
    files = [m.removeprefix("aios.").replace(".", "/") + ".py" for s in STOPS.values() for m in s]
    assert [file for file in files if file not in tour] == []
