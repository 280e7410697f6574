"""`aios config show`: every setting, its value, and where that came from."""

from __future__ import annotations

from typing import Annotated

import typer

from aios import config
from aios.cli import show

app = typer.Typer(help="The configuration.", no_args_is_help=True)


@app.command("show")
def show_config(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Every setting with its source: the environment, config.toml, or the default."""
    paths = config.Paths.find()
    settings = config.settings(paths)
    places = {
        name: str(getattr(paths, name))
        for name in ("config_file", "data", "models", "runtime", "logs")
    }
    if json:
        show.json({"settings": settings, "places": places})
        return
    show.out(
        show.table(
            ("SETTING", "VALUE", "FROM"),
            ((setting.name, setting.value, setting.source) for setting in settings),
        )
    )
    print()
    show.facts(places.items())
