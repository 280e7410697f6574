"""``python -m bench NAME [OPTIONS] [--json]``: measure one thing, say whether it meets its goal.

A bench is a module here with ``run() -> dict``: its figures, ``name``, ``goal`` and ``met``. One
that takes options is given them as they are; its docstring names them. With --json the last line
printed is that, as one object. The exit status is 0 when the goal is met.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any


def benches() -> dict[str, str]:
    """The names of the benches and the first line of what each says about itself."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(part, ast.FunctionDef) and part.name == "run" for part in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def show(figures: dict[str, Any]) -> None:
    """The figures as lines for people."""
    for key, value in figures.items():
        if key not in ("name", "goal", "met"):
            print(f"  {key:24} {value}")
    print(f"  {'goal':24} {figures['goal']}: {'met' if figures['met'] else 'NOT met'}")


def main() -> int:
    name, *options = [argument for argument in sys.argv[1:] if argument != "--json"] or [""]
    known = benches()
    run = importlib.import_module(f"bench.{name}").run if name in known else None
    if run is None or (options and not inspect.signature(run).parameters):
        print("usage: python -m bench NAME [OPTIONS] [--json]\n", file=sys.stderr)
        for name, line in known.items():
            print(f"  {name:16} {line}", file=sys.stderr)
        return 2
    figures = run(*options)
    show(figures)
    if "--json" in sys.argv:
        print(json.dumps(figures))
    return 0 if figures["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
