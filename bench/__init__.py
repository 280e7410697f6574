"""Every number that the README claims, each one command: ``python -m bench NAME [--json]``."""
