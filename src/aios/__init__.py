"""aios: an operating system for LLM agents."""
