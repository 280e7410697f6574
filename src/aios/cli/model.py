"""`aios model pull|list|rm|import`, and the first use of a model, which pulls it by itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aios.cli import show
from aios.config import Paths, load
from aios.errors import InvalidCall, NotFound, SetupError

if TYPE_CHECKING:
    from aios.models import CatalogueModel, ModelFile, ModelStore, Progress

app = typer.Typer(help="The models that are here.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Name = Annotated[str, typer.Argument(help="The model's name.")]


def _store() -> ModelStore:
    from aios.models import ModelStore

    return ModelStore(Paths.find().models)


def _default() -> str:
    return load(Paths.find()).core.model


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar a stage on a terminal's stderr; elsewhere a line when a stage begins."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        begun: set[str] = set()

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in begun:
                begun.add(stage)
                show.note(f"{stage}: {total / 1e6:,.0f} MB" if total else stage)

        yield tell
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{stage:<10}", total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield draw


def fetch_if_missing(asked: str | None) -> None:
    """Pull what is asked for (the default model if None) unless it is here, and say so.

    Done by the client, so that the bar is seen; a name that nobody knows is NotFound. For what
    config.toml describes there is nothing to pull.
    """
    from aios.kernel.routing import parts

    cores = load(Paths.find()).cores
    described = {*cores}.union(*({spec.model, *spec.classes} for spec in cores.values()))
    for _, name in parts(asked or _default()):
        if name and name not in described:
            _fetch_if_missing(name, _store())


def _fetch_if_missing(name: str, store: ModelStore) -> None:
    known = store.catalogue.get(name)
    if known is not None and not known.embedded:
        raise _not_embedded(name, store)
    try:
        if not store.find(name).embedded:
            raise _not_embedded(name, store)
    except NotFound:
        if name not in store.catalogue:
            raise
        size = store.catalogue[name].download_bytes / 1e6
        show.note(f"the model {name} is not here yet; getting it once ({size:.0f} MB) ...")
        began = time.monotonic()
        with progress() as tell:
            store.pull(name, tell)
        show.note(f"the model {name} is here, after {time.monotonic() - began:.0f} s.")


def _not_embedded(name: str, store: ModelStore) -> SetupError:
    """For a model that needs another core, which config.toml does not describe."""
    first = "" if store.has(name) else f"`aios model pull {name}`, then "
    return SetupError(
        f"the embedded core cannot run {name}, a transformers core can: {first}`aios core "
        f"add {name} --kind transformers --model {store.directory} --gguf-file {name}.gguf`."
    )


def _agree(model: CatalogueModel, accepted: bool) -> bool:
    """Show a model's terms, and on a terminal ask."""
    if model.terms is None:
        return False
    show.note(f"{model.name} comes under the {model.terms.title}, {model.terms.url}.")
    show.note(model.terms.gist)
    if accepted or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return accepted
    return typer.confirm(f"Do you agree to the {model.terms.title}?", err=True)


def fetch_if_known(name: str) -> None:
    """Pull a model of the catalogue unless it is here; what others are, the kernel knows."""
    if name in _store().catalogue:
        fetch_if_missing(name)


def about(name: str) -> str:
    """Which model answered, how small it is, and how to use a better one."""
    store = _store()
    if not store.has(name):
        return f"{name} answered."
    title = f" ({store.catalogue[name].title})" if name in store.catalogue else ""
    return (
        f"{name}{title} answered: a file of {store.find(name).bytes / 1e6:.0f} MB. A model this "
        "small is consistent, not clever.\nFor better answers: `aios model import FILE.gguf "
        "--name NAME`, then `aios demo --model NAME`, or core.model in config.toml."
    )


def _print(models: list[ModelFile], default: str) -> None:
    show.out(
        show.table(
            ("MODEL", ">MB", ">CONTEXT", "LICENCE", "CORE", "SINCE", "FROM"),
            (
                (
                    f"{model.name} (default)" if model.name == default else model.name,
                    f"{model.bytes / 1e6:.0f}",
                    model.context or "-",
                    model.licence or "-",
                    "embedded" if model.embedded else "transformers",
                    date.fromtimestamp(model.created_at),
                    model.source,
                )
                for model in models
            ),
        )
    )


@app.command("pull")
def pull(
    model: Annotated[
        str | None,
        typer.Argument(help="A model of the catalogue, or hf:OWNER/REPOSITORY/FILE.gguf."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of one from the hub; else the file's own.")
    ] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="You have read the model's terms and agree.")
    ] = False,
    json: Json = False,
) -> None:
    """Get a model (the default one if none is named); one that is here is left alone."""
    store, wanted = _store(), model or _default()
    if wanted.startswith("hf:"):
        with progress() as tell:
            got = store.pull_from_hub(wanted, name, tell)
    else:
        if name is not None:
            raise InvalidCall(f"{wanted} keeps its name; --name is for a model from the hub.")
        known = store.catalogue.get(wanted)
        agreed = known is not None and not store.has(wanted) and _agree(known, accept_terms)
        with progress() as tell:
            got = store.pull(wanted, tell, agreed=agreed)
    if json:
        show.json(got)
    else:
        print(f"{got.name}: {got.path}")


@app.command("list")
def list_models(json: Json = False) -> None:
    """The models that are here."""
    models, default = _store().list(), _default()
    if json:
        show.json(models)
        return
    _print(models, default)
    here = {model.name for model in models}
    known = [_offer(model) for name, model in _store().catalogue.items() if name not in here]
    if known:
        show.note(f"to be had with `aios model pull`: {', '.join(known)}.")


def _offer(model: CatalogueModel) -> str:
    remarks = [] if model.embedded else ["for a transformers core"]
    if model.terms is not None:
        remarks.append(f"under the {model.terms.title}")
    return f"{model.name} ({', '.join(remarks)})" if remarks else model.name


@app.command("rm")
def remove(name: Name) -> None:
    """Remove a model's file."""
    _store().remove(name)


@app.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(help="A GGUF file; it is copied.")],
    name: Annotated[str | None, typer.Option("--name", help="Else the file's own.")] = None,
    json: Json = False,
) -> None:
    """Copy a model of your own in."""
    with progress() as tell:
        got = _store().import_file(file, name, tell)
    if json:
        show.json(got)
    else:
        print(f"{got.name}: {got.path}")
