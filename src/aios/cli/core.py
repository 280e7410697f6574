"""`aios core add|list|test|drain|remove`: what turns contexts into tokens here."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomlkit
import typer
from tomlkit.exceptions import TOMLKitError

from aios.abi import wire
from aios.abi.calls import (
    CoreAdd,
    CoreDrain,
    CoreInfo,
    CoreInfos,
    CoreList,
    CoreRemove,
    CoreSpec,
    Done,
    Generate,
    Generation,
    Price,
)
from aios.abi.messages import Message, Sampling
from aios.cli import session, show
from aios.config import Paths, load
from aios.errors import (
    Conflict,
    CoreFailed,
    InvalidCall,
    NotFound,
    NotRunning,
    SetupError,
    TimedOut,
)

app = typer.Typer(help="Cores: embedded models, model servers, cloud models.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Name = Annotated[str, typer.Argument(help="The core's name, as `core list` shows it.")]


def _price(text: str) -> Price | None:
    """``0.15/0.60`` or ``0.15/0.60/0.075``: prompt, answer and cached prompt."""
    if not text:
        return None
    try:
        amounts = [float(part) for part in text.split("/")]
        if len(amounts) not in (2, 3) or not all(0 <= amount < inf for amount in amounts):
            raise ValueError
    except ValueError:
        raise InvalidCall(
            f"{text!r} is no price: give dollars for a million tokens of the prompt and of the "
            "answer, as in 0.15/0.60 (and of a cached prompt: 0.15/0.60/0.075)."
        ) from None
    return Price(*amounts)


def memory_map(text: str) -> dict[str, str]:
    """``{"0": "24GB"}`` as a table of GPUs; InvalidCall if it is not one."""
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise InvalidCall(
            f'{text!r} is no memory map ({error}): give JSON such as {{"0": "24GB"}}.'
        ) from error


def _described(document: tomlkit.TOMLDocument, file: Path) -> MutableMapping[str, Any]:
    """The table of cores."""
    cores = document.setdefault("cores", tomlkit.table(is_super_table=True))
    if not isinstance(cores, MutableMapping):
        raise SetupError(f"{file}: [cores] must hold tables, [cores.NAME], not {cores!r}.")
    return cores


@contextmanager
def _edited(paths: Paths) -> Iterator[MutableMapping[str, Any]]:
    """The cores of config.toml, written back at the end of the block; one at a time edits it."""
    file = paths.config_file
    paths.make()
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            document = tomlkit.parse(file.read_text())
        except FileNotFoundError:
            document = tomlkit.document()
        except (OSError, UnicodeDecodeError, TOMLKitError) as error:
            raise SetupError(f"{file} cannot be read as TOML: {error}.") from error
        yield _described(document, file)
        draft = file.with_suffix(f".{os.getpid()}.part")
        draft.write_text(tomlkit.dumps(document))
        draft.replace(file)


def _running(call: CoreAdd | CoreRemove, kind: Any) -> bool:
    """Tell a kernel that runs; whether one does."""
    try:
        session.ask(call, kind)
    except NotRunning:
        return False
    return True


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What it is to be called here.")],
    kind: Annotated[
        str, typer.Option("--kind", help="openai, provider, transformers or embedded.")
    ] = "openai",
    url: Annotated[str, typer.Option("--url", help="Of its server, up to /v1.")] = "",
    model: Annotated[str, typer.Option("--model", help="Its name there; a folder, a file.")] = "",
    provider: Annotated[str, typer.Option("--provider", help="anthropic, gemini, ...")] = "",
    key_env: Annotated[
        str, typer.Option("--key-env", help="The environment variable that holds the key.")
    ] = "",
    keyring: Annotated[
        str, typer.Option("--keyring", help="The key's name in this machine's keyring.")
    ] = "",
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="small, vision, ...; may be repeated.")
    ] = None,
    price: Annotated[
        str, typer.Option("--price", help="Dollars a million tokens: PROMPT/ANSWER[/CACHED].")
    ] = "",
    slots: Annotated[int, typer.Option("--slots", help="Generations at once.")] = 0,
    context_tokens: Annotated[int, typer.Option("--context-tokens", help="Its window.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda:0, ...")] = "auto",
    max_memory: Annotated[
        str, typer.Option("--max-memory", help='Of each GPU, as in {"0": "24GB"}.')
    ] = "",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, ...")] = "auto",
    quantization: Annotated[str, typer.Option("--quantization", help="4bit or 8bit.")] = "",
    gguf_file: Annotated[
        str, typer.Option("--gguf-file", help="The GGUF in the folder or repository to use.")
    ] = "",
    json: Json = False,
) -> None:
    """Describe a core in config.toml; a kernel that runs has it at once."""
    given = {
        "kind": kind,
        "url": url,
        "model": model,
        "provider": provider,
        "key_env": key_env,
        "keyring": keyring,
        "classes": classes or [],
        "price": _price(price),
        "slots": slots,
        "context_tokens": context_tokens,
        "device": device,
        "max_memory": memory_map(max_memory),
        "dtype": dtype,
        "quantization": quantization,
        "gguf_file": gguf_file,
    }
    try:
        spec = msgspec.convert(msgspec.to_builtins(given), CoreSpec)
    except msgspec.ValidationError as error:
        raise InvalidCall(f"that is no core: {str(error)[0].lower()}{str(error)[1:]}.") from error
    from aios.drivers.cores.configured import check

    check(name, spec)
    paths = Paths.find()
    with _edited(paths) as cores:
        if name in cores:
            raise Conflict(f"config.toml describes a core {name!r} already: remove it first.")
        known = _running(CoreAdd(name=name, spec=spec), CoreInfos)
        cores[name] = tomlkit.item(wire.plain(spec))
    if json:
        show.json({"name": name, "spec": spec, "running": known})
    else:
        print(f"{name} is described in {paths.config_file}.")
        if not known:
            show.note("no kernel runs: the next `aios up` has it.")


@app.command("list")
def list_cores(json: Json = False) -> None:
    """All cores; of a kernel that runs, also how they are."""
    try:
        cores = session.ask(CoreList(), CoreInfos).cores
    except NotRunning:
        cores = tuple(
            CoreInfo(name, spec.kind, spec.model or name, "cold", spec.classes, spec.price)
            for name, spec in load(Paths.find()).cores.items()
        )
        show.note("no kernel runs; these are the cores of config.toml.")
    if json:
        show.json(cores)
        return
    columns = ("NAME", "KIND", "MODEL", "STATE", ">RUN", ">QUEUE", ">SLOTS", ">WINDOW", ">TOK/S")
    show.out(show.table((*columns, ">$ IN/OUT", "CLASSES"), (_row(core) for core in cores)))
    for core in cores:
        if core.message:
            show.note(f"{core.name}: {core.message}")


def _row(core: CoreInfo) -> tuple[object, ...]:
    price = f"{core.price.prompt:g}/{core.price.answer:g}" if core.price else "-"
    return (
        core.name,
        core.kind,
        core.model,
        core.state,
        core.running,
        core.queued,
        core.slots or "-",
        core.context_tokens or "-",
        f"{core.speed:.1f}" if core.speed else "-",
        price,
        ",".join(core.classes) or "-",
    )


@app.command("test")
def try_out(
    name: Name,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for it.")] = 30.0,
    json: Json = False,
) -> None:
    """Have it say a few words."""
    began = time.monotonic()
    call = Generate(
        messages=(Message("user", "Say hello."),),
        context=None,
        model=name,
        sampling=Sampling(max_tokens=8),
        timeout_s=timeout,
    )
    try:
        made = session.ask(call, Generation)
    except TimedOut:
        cores = session.ask(CoreList(), CoreInfos).cores
        why = next((core.message for core in cores if core.name == name), "")
        raise CoreFailed(
            f"{name} does not answer: {why or f'nothing came in {timeout:g} s.'}"
        ) from None
    took_s = time.monotonic() - began
    if json:
        show.json({"name": name, "took_s": round(took_s, 3), "text": made.message.content})
        return
    tokens = made.usage.completion_tokens
    print(f"{name} answered in {took_s:.1f} s ({tokens} tokens): {made.message.content!r}")


@app.command("drain")
def drain(
    name: Name,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take calls again.")] = False,
    json: Json = False,
) -> None:
    """Send it nothing new; what waits for it goes elsewhere, what has begun ends there."""
    cores = session.ask(CoreDrain(name=name, undo=undo), CoreInfos).cores
    core = next(core for core in cores if core.name == name)
    if json:
        show.json(core)
    elif undo:
        print(f"{name} takes calls again.")
    else:
        print(f"{name} is sent nothing new; {core.running} generations run there still.")


@app.command("remove")
def remove(name: Name) -> None:
    """Drain it, wait until it is idle, and take it out of config.toml."""
    paths = Paths.find()
    load(paths)  # what is wrong with the file is said before anything is done
    known = _running(CoreRemove(name=name), Done)  # this may take as long as its generations do
    with _edited(paths) as cores:
        if name in cores:
            del cores[name]
        elif not known:
            raise NotFound(f"config.toml describes no core {name!r}; `aios core list` shows them.")
