"""Writes docs/reference/ from the code: `python docs/generate.py`; tests fail when it differs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import typer.main

from aios import config, errors
from aios.abi import calls, events
from aios.abi.calls import CoreSpec
from aios.cli import exits
from aios.cli.main import app

REFERENCE = Path(__file__).parent / "reference"
HEAD = "<!-- made by docs/generate.py from the code; do not edit -->\n\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)]) + "\n"


def own_text(documented: Any) -> str:
    """A class's own docstring; empty where it only has its base's."""
    text = (
        documented.__dict__.get("__doc__") if isinstance(documented, type) else documented.__doc__
    )
    return prose(text or "")


def prose(text: str) -> str:
    """A docstring as one paragraph of Markdown."""
    return " ".join(inspect.cleandoc(text).split()).replace("``", "`")


def kind_of(annotation: Any) -> str:
    """A type as one writes it, the same on every version of Python."""
    inner = get_args(annotation)
    origin = get_origin(annotation)
    if annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if origin is Literal:
        return " | ".join(repr(value) for value in inner)
    if origin in (Union, UnionType):
        return " | ".join(kind_of(kind) for kind in inner)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(kind_of(kind) for kind in inner)}]"
    return str(getattr(annotation, "__name__", annotation))


def fields_of(struct: type[msgspec.Struct], without: Iterable[str] = ()) -> str:
    rows = []
    for field in msgspec.structs.fields(struct):
        if field.encode_name in without:
            continue
        if field.default is not msgspec.NODEFAULT:
            default = f"`{field.default!r}`"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = f"`{field.default_factory()!r}`"
        else:
            default = "required"
        rows.append((f"`{field.encode_name}`", f"`{kind_of(field.type)}`", default))
    return table(("field", "type", "default"), rows) if rows else ""


def _headings(source: str) -> list[tuple[int, str]]:
    """The `# --- name ---` lines of a file, with their line numbers."""
    return [
        (number, found[1])
        for number, line in enumerate(source.splitlines(), 1)
        if (found := re.match(r"# --- (.+?) -+$", line))
    ]


def calls_page() -> str:
    source = inspect.getsource(calls)
    headings = _headings(source)
    parts = [
        "# System calls\n\nEach is posted to `/api/trap` as a JSON object with its name under "
        "`call`; every one also takes `timeout_s` and `path`.\n",
    ]
    current = ""
    order = sorted(calls.CALLS.items(), key=lambda item: inspect.getsourcelines(item[1])[1])
    for name, call in order:
        line = inspect.getsourcelines(call)[1]
        heading = [text for number, text in headings if number < line][-1]
        if heading != current:
            parts.append(f"## {heading}\n")
            current = heading
        parts.append(f"### {name}\n")
        if text := own_text(call):
            parts.append(text + "\n")
        if fields := fields_of(call, without=("timeout_s", "path")):
            parts.append(fields)
        parts.append(f"Reply: [{call.reply.__name__}](#reply-{call.reply.__name__.lower()})\n")
    parts.append("## Replies\n")
    for reply in sorted({call.reply for call in calls.CALLS.values()}, key=lambda r: r.__name__):
        parts.append(f"### Reply {reply.__name__}\n")
        if text := own_text(reply):
            parts.append(text + "\n")
        if fields := fields_of(reply):
            parts.append(fields)
    return "\n".join(parts)


def events_page() -> str:
    parts = [
        "# Events\n\n" + prose(events.__doc__ or "") + "\n",
        "Every event has `seq`, `at` (seconds since the epoch) and `pid`.\n",
    ]
    for event in events.EVENTS:
        parts.append(f"## {event.__struct_config__.tag}\n")
        if text := own_text(event):
            parts.append(text + "\n")
        if fields := fields_of(event, without=("seq", "at", "pid")):
            parts.append(fields)
    return "\n".join(parts)


def errors_page() -> str:
    def rows(root: type[errors.AiosError], depth: int = 0) -> Iterable[tuple[object, ...]]:
        indent = "&nbsp;" * 4 * depth
        again = "yes" if root.retryable else ""
        yield f"{indent}{root.__name__}", f"`{root.code}`", root.status, again, exits_of(root)
        for child in root.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from rows(child, depth + 1)

    def exits_of(kind: type[errors.AiosError]) -> int:
        return exits.of_error(kind("x"))

    return (
        "# Errors\n\nA message is one sentence: what was wrong, with the value, and what to do.\n\n"
        + table(
            ("error", "code", "HTTP", "worth retrying", "exit code of the CLI"),
            rows(errors.AiosError),
        )
    )


def _commands(group: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def cli_page() -> str:
    parts = ["# Commands\n\nExit codes: [exit-codes.md](exit-codes.md).\n"]
    for name, command in _commands(typer.main.get_command(app), "aios"):
        parts.append(f"## {name}\n")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(_placeholder(argument) for argument in arguments)
        parts.append(f"    {name} [OPTIONS] {usage}".rstrip() + "\n")
        parts.append(prose(command.help or "") + "\n")
        rows = [
            (
                f"`{', '.join(p.opts)}`" if p not in arguments else f"`{_placeholder(p)}`",
                p.help or "",
            )
            for p in command.params
            if p.name != "help"
        ]
        if rows:
            parts.append(table(("parameter", "meaning"), rows))
    return "\n".join(parts)


def _placeholder(argument: Any) -> str:
    name = argument.metavar or (argument.name or "").upper()
    name += "..." if argument.nargs == -1 and not argument.metavar else ""
    return name if argument.required else f"[{name}]"


def settings_page() -> str:
    parts = [
        "# Settings\n\nA value comes from a flag, else the environment (`AIOS_<GROUP>_<NAME>`), "
        "else `config.toml` (a table a group), else the default; `aios config show` prints which.\n"
    ]
    for group in msgspec.structs.fields(config.Config):
        if group.name == "cores":
            continue
        comments = _comments(inspect.getsource(group.type))
        default = getattr(config.Config(), group.name)
        rows = [
            (
                f"`{group.name}.{field.name}`",
                f"`{getattr(default, field.name)!r}`",
                f"`AIOS_{group.name}_{field.name}`".upper(),
                comments.get(field.name, ""),
            )
            for field in msgspec.structs.fields(group.type)
        ]
        parts.append(
            f"## {group.name}\n\n" + table(("setting", "default", "variable", "why"), rows)
        )
    parts.append(
        f"## cores.NAME\n\n{prose(CoreSpec.__doc__ or '')}\n\n"
        + table(
            ("setting", "default", "why"),
            (
                (
                    f"`cores.NAME.{field.name}`",
                    f"`{getattr(CoreSpec(), field.name)!r}`",
                    _comments(inspect.getsource(CoreSpec)).get(field.name, ""),
                )
                for field in msgspec.structs.fields(CoreSpec)
            ),
        )
    )
    return "\n".join(parts)


def _comments(source: str) -> dict[str, str]:
    """Field -> the comment on its line."""
    found = re.findall(r"^\s+(\w+): [^#\n]*(?:#\s*(.*))?$", source, re.MULTILINE)
    return {name: comment for name, comment in found if comment}


def exit_codes_page() -> str:
    return (
        "# Exit codes\n\n"
        + table(
            ("code", "name", "when"),
            ((row.code, row.name, row.meaning) for row in exits.EXIT_CODES),
        )
        + "\n`aios run` and `aios wait` exit with the program's own exit status, 128+N when "
        "signal N ended it.\n"
    )


PAGES = {
    "calls.md": calls_page,
    "events.md": events_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
    "settings.md": settings_page,
    "exit-codes.md": exit_codes_page,
}


def pages() -> dict[str, str]:
    """File name -> text of all the pages."""
    return {name: HEAD + make().rstrip() + "\n" for name, make in PAGES.items()}


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)
