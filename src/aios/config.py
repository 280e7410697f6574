"""Configuration: frozen values, one group a part, read once.

Order: a flag, the environment (``AIOS_<GROUP>_<NAME>``), config.toml, the default here. Every limit
has its unit and reason beside it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
from msgspec import Struct, field

from aios.errors import SetupError


class Paths(Struct, frozen=True):
    """Where things are. AIOS_HOME puts all four under one directory.

    AIOS_MODELS is where models are kept, so that several homes can share them.
    """

    config: Path
    data: Path
    cache: Path
    runtime: Path
    shared_models: Path | None = None

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def journal(self) -> Path:
        return self.data / "journal.db"

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def snapshots(self) -> Path:
        return self.data / "snapshots"

    @property
    def models(self) -> Path:
        return self.shared_models or self.cache / "models"

    @property
    def socket(self) -> Path:
        return self.runtime / "aios.sock"

    @classmethod
    def find(cls) -> Paths:
        home = os.environ.get("AIOS_HOME")
        elsewhere = os.environ.get("AIOS_MODELS")
        models = Path(elsewhere).expanduser().absolute() if elsewhere else None
        if home:
            root = Path(home).expanduser().absolute()
            return cls(root / "config", root / "data", root / "cache", root / "run", models)
        dirs = platformdirs.PlatformDirs("aios", appauthor=False)
        return cls(
            Path(dirs.user_config_dir),
            Path(dirs.user_data_dir),
            Path(dirs.user_cache_dir),
            Path(os.environ.get("XDG_RUNTIME_DIR") or dirs.user_data_dir) / "aios-run",
            models,
        )


class Kernel(Struct, frozen=True):
    children: int = 64  # per process: a runaway spawner stops here
    depth: int = 8  # of the tree of processes
    mailbox_messages: int = 1_000  # per process
    mailbox_bytes: int = 8_000_000  # per process, of JSON
    processes: int = 4_096  # live ones per user
    zombie_s: float = 86_400.0  # a zombie nobody waits for goes after a day
    kill_grace_s: float = 5.0  # between TERM and KILL
    message_bytes: int = 1_000_000  # one request: contexts are text, files go elsewhere


class Scheduler(Struct, frozen=True):
    policy: str = "round_robin"
    quantum: int = 32  # decoded tokens a slice: 3 % switching cost at 2,048 tokens of context
    queue: int = 4_096  # tickets waiting for one core; more are refused
    ageing_s: float = 10.0  # of waiting is worth one step of nice


class Core(Struct, frozen=True):
    """The embedded core."""

    model: str = "smollm2-135m"
    slots: int = 8  # sequences in one batch: past it decoding gains little on two cores
    threads: int = 0  # 0: as many as this process may use, at most 8
    cells: int = 16_384  # KV pool in tokens: 360 MiB for the default model at the full size
    ram_mb: int = 512  # for contexts paged out of the cells; beyond it they are recomputed
    restarts: int = 5  # of a crashed worker in a minute before it is given up


class Server(Struct, frozen=True):
    host: str = "127.0.0.1"
    port: int = 7311  # 0: any free one
    tcp: bool = True
    body_bytes: int = 8_000_000  # one request body
    heartbeat_s: float = 15.0  # a comment on an open stream, so that proxies keep it
    aliases: dict[str, str] = field(default_factory=dict)  # a name on /v1 -> a model here


class Config(Struct, frozen=True):
    kernel: Kernel = Kernel()
    scheduler: Scheduler = Scheduler()
    core: Core = Core()
    server: Server = Server()


class Setting(Struct, frozen=True):
    """One value and where it came from: flag, the variable's name, the file, or default."""

    name: str
    value: Any
    source: str


def _parse(name: str, text: str, kind: Any, source: str) -> Any:
    if kind is bool:
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off"}:
            return False
    try:
        if kind not in (str, int, float, bool):
            return msgspec.json.decode(text, type=kind)
        return msgspec.convert(text, kind, strict=False)
    except msgspec.MsgspecError as error:
        raise SetupError(
            f"{source} gives {name} the value {text!r}, which does not fit: {error}."
        ) from error


def settings(paths: Paths, flags: dict[str, str] | None = None) -> list[Setting]:
    """Every value with its source; SetupError names a value that does not fit or is unknown."""
    flags = dict(flags or {})
    file = paths.config_file
    try:
        given: dict[str, Any] = tomllib.loads(file.read_text()) if file.exists() else {}
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} cannot be read as TOML: {error}.") from error
    found: list[Setting] = []
    for group in msgspec.structs.fields(Config):
        table = given.pop(group.name, {})
        if not isinstance(table, dict):
            raise SetupError(f"{file}: [{group.name}] must be a table, not {table!r}.")
        for value in msgspec.structs.fields(group.type):
            name = f"{group.name}.{value.name}"
            variable = f"AIOS_{group.name}_{value.name}".upper()
            default = getattr(getattr(Config(), group.name), value.name)
            if name in flags:
                found.append(
                    Setting(name, _parse(name, flags.pop(name), value.type, "the flag"), "flag")
                )
            elif variable in os.environ:
                found.append(
                    Setting(
                        name, _parse(name, os.environ[variable], value.type, variable), variable
                    )
                )
            elif value.name in table:
                try:
                    found.append(
                        Setting(name, msgspec.convert(table[value.name], value.type), str(file))
                    )
                except msgspec.ValidationError as error:
                    raise SetupError(f"{file}: {name} does not fit: {error}.") from error
            else:
                found.append(Setting(name, default, "default"))
            table.pop(value.name, None)
        if table:
            raise SetupError(f"{file}: [{group.name}] has no setting named {next(iter(table))!r}.")
    for unknown in [*given, *flags]:
        raise SetupError(
            f"there is no setting named {unknown!r}; `aios config show` lists them all."
        )
    return found


def load(paths: Paths, flags: dict[str, str] | None = None) -> Config:
    groups: dict[str, dict[str, Any]] = {}
    for setting in settings(paths, flags):
        group, name = setting.name.split(".")
        groups.setdefault(group, {})[name] = setting.value
    return msgspec.convert(groups, Config)
