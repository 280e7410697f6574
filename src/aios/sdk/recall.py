"""``recall``: a tool by which a model reads back what its context moved to memory.

await me.generate("What did I say first?", tools=[aios.recall])
"""

from __future__ import annotations

from aios.errors import NotFound
from aios.sdk.contexts import page_of, pages
from aios.sdk.steps import me
from aios.sdk.tools import tool


@tool(effect="none")
async def recall(record: str) -> str:
    """Read back earlier turns of this conversation that are in a memory record.

    record: the id of the record, such as m12
    """
    page = page_of(await pages(me()), record)
    if page is None:
        raise NotFound("nothing of this conversation was moved to memory.")
    before = page.data["before"]
    return f"{page.text}\n[Before that: the memory record {before}.]" if before else page.text
