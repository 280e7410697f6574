"""What each kind of server takes beyond OpenAI's own fields, and what it can do."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Kind = Literal["llama.cpp", "vllm", "sglang", "ollama", "lmstudio", "openai", "unknown"]


class Dialect(Struct, frozen=True):
    """One kind of server.

    continues: it goes on from an assistant's turn that is given last (flags: only if told to, by
    add_generation_prompt and continue_final_message). off is the top_k that means none, where the
    server has another default (None: it has none). takes_min_p, takes_seed, takes_end: it knows
    min_p; a seed costs nothing; ignore_eos. priority is the sign of its priorities: 1 if the lowest
    goes first, as here, -1 if the highest does, 0 if it has none. running_usage: it tells its
    counts in every chunk. limit is its name for max_tokens; slots what it is given unless it says.
    """

    continues: bool = False
    flags: bool = False
    off: int | None = None
    takes_min_p: bool = False
    takes_seed: bool = False
    takes_end: bool = False
    priority: int = 0
    session_header: bool = False
    session_field: bool = False
    cache_key: bool = False
    cache_prompt: bool = False
    running_usage: bool = False
    limit: str = "max_tokens"
    slots: int = 8


DIALECTS: dict[Kind, Dialect] = {
    "llama.cpp": Dialect(
        continues=True,
        off=0,
        takes_min_p=True,
        takes_seed=True,
        takes_end=True,
        session_header=True,
        cache_prompt=True,
        slots=1,
    ),
    "vllm": Dialect(
        continues=True,
        flags=True,
        off=0,
        takes_min_p=True,
        takes_seed=True,
        takes_end=True,
        priority=1,
        session_header=True,
        session_field=True,
        running_usage=True,
        slots=64,
    ),
    "sglang": Dialect(
        continues=True,
        flags=True,
        off=-1,
        takes_min_p=True,
        takes_seed=True,
        takes_end=True,
        priority=-1,
        session_header=True,
        session_field=True,
        slots=64,
    ),
    "ollama": Dialect(takes_seed=True, slots=2),
    "lmstudio": Dialect(takes_seed=True, slots=2),
    "openai": Dialect(cache_key=True, limit="max_completion_tokens", slots=32),
    "unknown": Dialect(session_header=True, slots=8),
}
