"""Cores: what turns a context into tokens."""
