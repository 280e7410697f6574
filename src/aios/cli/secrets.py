"""`aios encrypt` and `aios decrypt`: stdin to stdout, under this user's key."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aios.abi.calls import DecryptData, EncryptData, Opened, Sealed
from aios.cli import session, show
from aios.errors import InvalidCall

Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def encrypt(json: Json = False) -> None:
    """Seal what stdin says; stdout gets a token that only this user's key opens."""
    sealed = session.ask(EncryptData(data=sys.stdin.buffer.read()), Sealed)
    if json:
        show.json(sealed)
    else:
        print(sealed.token)


def decrypt(json: Json = False) -> None:
    """Open the token that stdin says; stdout gets what was sealed (with --json, in base64)."""
    try:
        token = sys.stdin.buffer.read().decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise InvalidCall(
            f"stdin is no token ({error.reason}): give what `aios encrypt` printed."
        ) from error
    opened = session.ask(DecryptData(token=token), Opened)
    if json:
        show.json(opened)
    else:
        sys.stdout.buffer.write(opened.data)
        sys.stdout.buffer.flush()


def register(app: typer.Typer) -> None:
    for command in (encrypt, decrypt):
        app.command()(command)
