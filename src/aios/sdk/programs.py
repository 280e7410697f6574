"""Finding programs: a name or a path -> what the kernel is to start."""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from aios.abi.calls import Limits, Retrieval, Strategy
from aios.errors import InvalidCall, NotFound
from aios.sdk.request import retrieval

MANIFEST = "agent.toml"
GROUP = "aios.agents"  # the entry points by which a package brings agents along
CARRIED = ("restart", "window", "strategy", "retrieve")  # to SpawnAgent, as they are
BUILT_IN = ("coding", "math", "narrative", "rec", "travel")


class Program(Struct, frozen=True, omit_defaults=True):
    """What to start and what it may use; argv runs it in the interpreter that found it."""

    name: str
    argv: tuple[str, ...]
    model: str | None = None
    budget: Limits = Limits()
    priority: int | None = None
    restart: Literal["never", "on-crash"] = "never"
    cwd: str | None = None
    window: int | None = None
    strategy: Strategy = "drop"
    retrieve: Retrieval | None = None


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """``agent.toml``. entry is ``file.py``, ``module:function``, or any command's file.

    window (tokens) and strategy are how its contexts are kept short; retrieve = true, or a table,
    has memory and files looked up for each of its generations.
    """

    name: str
    entry: str
    version: str = ""
    description: str = ""
    model: str | None = None
    budget: Limits = Limits()
    priority: int | None = None
    restart: Literal["never", "on-crash"] = "never"
    window: int | None = None
    strategy: Strategy = "drop"
    retrieve: Retrieval | bool | None = None


def find(name: str, cwd: str | Path | None = None) -> Program:
    """A path, or a name from the manifest in *cwd*, installed packages, or the five agents.

    NotFound lists the names that there are.
    """
    folder = Path(cwd or os.getcwd())
    if _is_path(name) or (folder / name).is_file():
        return of_path(folder / name)
    known = names(folder)
    if name not in known:
        raise NotFound(
            f"there is no program {name!r}: give a path such as ./{name}.py, "
            f"or one of {', '.join(known)}."
        )
    return known[name]


def names(cwd: str | Path | None = None) -> dict[str, Program]:
    """Every program that goes by a name here; the nearest one wins."""
    found = {name: built_in(name) for name in BUILT_IN}
    for entry in entry_points(group=GROUP):
        found[entry.name] = _module(entry.name, entry.value)
    manifest = Path(cwd or os.getcwd()) / MANIFEST
    if manifest.is_file():
        program = of_manifest(manifest)
        found[program.name] = program
    return dict(sorted(found.items()))


def built_in(name: str) -> Program:
    """One of the five agents that come with aios; its name is all that is known of it here."""
    return _module(name, f"aios.agents.{name}")


def of_path(path: Path) -> Program:
    """A Python file (with an @aios.agent function or not), a folder with a manifest, a command."""
    path = path.absolute()
    if path.is_dir() and (path / MANIFEST).is_file():
        return of_manifest(path / MANIFEST)
    if not path.is_file():
        raise NotFound(f"there is no program at {path}: check the path.")
    return Program(name=path.stem, argv=_argv(path))


def of_manifest(file: Path) -> Program:
    try:
        manifest = msgspec.toml.decode(file.read_bytes(), type=Manifest)
    except (OSError, tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCall(f"{file} is no manifest of an agent: {error}.") from error
    folder = file.absolute().parent
    entry = folder / manifest.entry
    if entry.is_file():
        argv = _argv(entry)
    elif ":" in manifest.entry:
        argv = _launch(manifest.entry)
    else:
        raise NotFound(f"{file} names the entry {manifest.entry!r}, which is not in {folder}.")
    return Program(
        name=manifest.name,
        argv=argv,
        model=manifest.model,
        budget=manifest.budget,
        priority=manifest.priority,
        restart=manifest.restart,
        cwd=str(folder),
        window=manifest.window,
        strategy=manifest.strategy,
        retrieve=retrieval(manifest.retrieve)
        if isinstance(manifest.retrieve, bool)
        else manifest.retrieve,
    )


def defines_agent(source: bytes, path: Path) -> bool:
    """Whether a Python file has a function under @aios.agent; it is read, not run."""
    try:
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError) as error:
        raise InvalidCall(f"{path} is not valid Python: {error}.") from error
    functions = (
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    marks = (mark for function in functions for mark in function.decorator_list)
    return any(
        ast.unparse(mark.func if isinstance(mark, ast.Call) else mark) in ("aios.agent", "agent")
        for mark in marks
    )


def _is_path(name: str) -> bool:
    return os.sep in name or name in (".", "..") or name.endswith(".py")


def _argv(path: Path) -> tuple[str, ...]:
    if path.suffix == ".py":
        if defines_agent(path.read_bytes(), path):
            return _launch(str(path))
        return (sys.executable, str(path))
    if os.access(path, os.X_OK):
        return (str(path),)
    raise InvalidCall(f"{path} cannot be run: it is neither a .py file nor executable.")


def _module(name: str, target: str) -> Program:
    return Program(name=name, argv=_launch(target))


def _launch(target: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "aios.sdk.launch", target)
