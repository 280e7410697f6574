"""`aios key new|revoke|list`: the bearer keys that clients come with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from aios.abi.calls import Done, KeyList, KeyNew, KeyRevoke, Keys, NewKey
from aios.cli import session, show

app = typer.Typer(help="Bearer keys.", no_args_is_help=True)


@app.command("new")
def new(
    label: Annotated[str, typer.Option("--label", help="What the key is for.")] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make a key; it is shown this once, the kernel keeps only its hash."""
    made = session.ask(KeyNew(label=label), NewKey)
    if json:
        show.json(made)
        return
    print(made.key)
    show.note(f"this is key {made.id}; it will not be shown again.")


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, as `key list` shows it.")],
) -> None:
    """End a key: whoever comes with it is refused from now on."""
    session.ask(KeyRevoke(id=key), Done)


@app.command("list")
def list_keys(
    json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """All keys, without their secrets."""
    keys = session.ask(KeyList(), Keys).keys
    if json:
        show.json(keys)
        return
    show.out(
        show.table(
            ("ID", "USER", "OF", "LABEL", "MADE", "STATE"),
            (
                (
                    key.id,
                    key.user,
                    "user" if key.aid is None else f"process {key.aid}",
                    key.label,
                    datetime.fromtimestamp(key.created_at).isoformat(" ", "minutes"),
                    "revoked" if key.revoked_at else "good",
                )
                for key in keys
            ),
        )
    )
