"""`aios`: the commands put together, and errors turned into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from aios.cli import (
    budget,
    context,
    core,
    exits,
    files,
    journal,
    key,
    lives,
    machine,
    memory,
    model,
    processes,
    run,
    scheduler,
    secrets,
    settings,
    show,
    streams,
    top,
)
from aios.errors import AiosError

app = typer.Typer(
    name="aios",
    help="An operating system for LLM agents.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # plain help: it starts faster and reads the same in a pipe
    pretty_exceptions_enable=False,
)

machine.register(app)
app.command()(run.run)
processes.register(app)
app.command()(top.top)
streams.register(app)
lives.register(app)
secrets.register(app)
app.add_typer(budget.app, name="budget")
app.add_typer(context.app, name="context")
app.add_typer(files.app, name="fs")
app.add_typer(memory.app, name="mem")
app.add_typer(memory.embed, name="embed")
app.add_typer(scheduler.app, name="sched")
app.add_typer(model.app, name="model")
app.add_typer(core.app, name="core")
app.add_typer(key.app, name="key")
app.add_typer(journal.app, name="journal")
app.add_typer(settings.app, name="config")


@app.command()
def demo(
    agents: Annotated[str, typer.Option("--agents", help="Which, with commas between.")] = "",
    policy: Annotated[str, typer.Option("--policy", help="Of the scheduler.")] = "round_robin",
    quantum: Annotated[int, typer.Option("--quantum", help="Decoded tokens a slice.")] = 16,
    model: Annotated[str | None, typer.Option("--model", help="The model that answers.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    """Five agents at once on one small model, then each alone: the same words, and the times."""
    from aios.cli.demo import demonstrate

    raise typer.Exit(demonstrate(agents, policy, quantum, model, json))


@app.command()
def version(json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Which aios this is."""
    from aios.kernel.kernel import VERSION

    if json:
        show.json({"aios": VERSION, "python": sys.version.split()[0]})
    else:
        print(f"aios {VERSION}")


@app.command("help")
def show_help(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(help="A command, or exit-codes.")] = None,
) -> None:
    """Help on a command, or on the exit codes: `aios help exit-codes`."""
    if topic == "exit-codes":
        for row in exits.EXIT_CODES:
            print(f"{row.code:>4}  {row.name:<12} {row.meaning}")
        print("`run` and `wait` exit with the program's own status, 128+N if signal N ended it.")
        return
    if context.parent is None:
        return
    main([topic, "--help"] if topic else ["--help"])


def prepared(arguments: Sequence[str]) -> list[str]:
    """`run … -- ARGV` as `run … --command -- ARGV`: the parser forgets that it saw the dashes.

    `run math -- "-3 + 5"` is no command line: a program stands before the dashes already, so they
    only say that the task is no option.
    """
    words = list(arguments)
    if words[:1] == ["run"] and "--" in words:
        dashes = words.index("--")
        if not run.names_a_program(words[1:dashes]):
            words.insert(dashes, "--command")
    return words


def code_of(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code."""
    try:
        code: int = app(args=prepared(arguments), prog_name="aios", standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a reader that has gone can be answered
        return code
    except AiosError as error:
        show.note(error.message)
        return exits.of_error(error)
    except typer.TyperException as error:
        said = error.format_message()
        if said.startswith("Usage:"):  # a group without a command: its help says what to type
            print(said, file=sys.stderr)
        else:
            show.note(f"{said.rstrip('.')}; `aios --help` lists the commands.")
        return exits.USAGE.code
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED.code
    except (BrokenPipeError, SystemExit) as error:
        # the parser's library answers a broken pipe with an exit of its own
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # whoever read our output has gone (`| head`): not an error, and not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK.code
    except OSError as error:  # a full disk behind `>`, a folder that went away
        show.note(f"this machine says no: {error}; mend that and run it again.")
        return exits.FAILED.code


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    sys.exit(code_of(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
