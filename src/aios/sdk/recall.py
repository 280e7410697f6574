"""``recall``: a tool by which a model reads back what its context moved to memory.

await me.generate("What did I say first?", tools=[aios.recall])
"""

from __future__ import annotations

from aios.abi.calls import MemoryRecords, MemRead
from aios.sdk.steps import me
from aios.sdk.tools import tool


@tool(effect="none")
async def recall(record: str) -> str:
    """Read back earlier turns of this conversation that are in a memory record.

    record: the id of the record, such as m12
    """
    found = (await me().call(MemRead(id=record), MemoryRecords)).records[0]
    before = found.data.get("before") if isinstance(found.data, dict) else None
    return f"{found.text}\n[Before that: the memory record {before}.]" if before else found.text
