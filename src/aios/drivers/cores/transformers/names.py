"""Short names of models, and the repositories that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

REPOSITORIES: Mapping[str, str] = MappingProxyType(
    {
        # those of March 2024
        "gemma-2b-it": "google/gemma-2b-it",
        "gemma-7b-it": "google/gemma-7b-it",
        "mixtral-8x7b-it": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-chat-hf",
        "llama-2-13b-chat-hf": "meta-llama/Llama-2-13b-chat-hf",
        "llama-2-70b-chat-hf": "meta-llama/Llama-2-70b-chat-hf",
        # and their successors
        "gemma-2-2b-it": "google/gemma-2-2b-it",
        "gemma-2-9b-it": "google/gemma-2-9b-it",
        "gemma-2-27b-it": "google/gemma-2-27b-it",
        "gemma-3-270m-it": "google/gemma-3-270m-it",
        "gemma-3-1b-it": "google/gemma-3-1b-it",
        "mixtral-8x22b-it": "mistralai/Mixtral-8x22B-Instruct-v0.1",
        "mistral-7b-it": "mistralai/Mistral-7B-Instruct-v0.3",
        "llama-3-8b-it": "meta-llama/Meta-Llama-3-8B-Instruct",
        "llama-3.1-8b-it": "meta-llama/Llama-3.1-8B-Instruct",
        "llama-3.1-70b-it": "meta-llama/Llama-3.1-70B-Instruct",
        "llama-3.2-1b-it": "meta-llama/Llama-3.2-1B-Instruct",
        "llama-3.2-3b-it": "meta-llama/Llama-3.2-3B-Instruct",
        "llama-3.3-70b-it": "meta-llama/Llama-3.3-70B-Instruct",
        "smollm2-135m-it": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "smollm2-1.7b-it": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    }
)


def source_of(model: str) -> str:
    """A folder as its full path, a short name as its repository, a repository as it is."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    return REPOSITORIES.get(model.lower(), model)
