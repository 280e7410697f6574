"""Configuration: frozen values, one group a part, read once.

Order: a flag, the environment (``AIOS_<GROUP>_<NAME>``), config.toml, the default here. Every limit
has its unit and reason beside it.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import platformdirs
from msgspec import Meta, Struct, field

from aios.abi.calls import CoreSpec
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
    def contexts(self) -> Path:
        """KV states that RAM does not hold; nothing that is needed when no kernel runs."""
        return self.cache / "contexts"

    @property
    def models(self) -> Path:
        return self.shared_models or self.cache / "models"

    @property
    def embedder(self) -> Path:
        return self.models / "embedder"

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
        data = Path(dirs.user_data_dir)
        return cls(
            Path(dirs.user_config_dir), data, Path(dirs.user_cache_dir), _runtime(data), models
        )

    def make(self) -> None:
        """Make every directory, for this user alone; SetupError where that cannot be.

        Not that of the models: the store makes it, and it may be somebody else's to share.
        """
        for directory in (
            *(self.config, self.data, self.keys, self.logs, self.snapshots),
            *(self.cache, self.runtime),
        ):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                found = directory.stat()
                if found.st_uid != os.getuid():
                    raise SetupError(
                        f"{directory} belongs to the user with id {found.st_uid}; keys and sockets "
                        "are only kept in your own directories, so set AIOS_HOME to one."
                    )
                if found.st_mode & 0o077:
                    directory.chmod(0o700)
            except OSError as error:
                raise SetupError(
                    f"{directory} cannot be made: {error.strerror}; mend that, or set AIOS_HOME to "
                    "another directory."
                ) from error


def _runtime(data: Path) -> Path:
    """The same for a login, a cron job and a service: else they would not find one another."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    user = Path(f"/run/user/{os.getuid()}")
    if given:
        return Path(given) / "aios"
    return user / "aios" if os.access(user, os.W_OK) else data / "run"


Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class Kernel(Struct, frozen=True):
    children: Natural = 64  # per process: a runaway spawner stops here
    depth: Natural = 8  # of the tree of processes
    mailbox_messages: Natural = 1_000  # per process
    mailbox_bytes: Natural = 8_000_000  # per process, of JSON
    processes: Positive = 4_096  # live ones per user
    zombie_s: Seconds = 86_400.0  # a zombie nobody waits for goes after a day
    kill_grace_s: Seconds = 5.0  # between TERM and KILL
    restart_concurrency: Positive = 4  # programs that start at once after a crash: more only thrash
    reconnect_s: Seconds = 30.0  # for agents in their callers' own Python, after a crash
    message_bytes: Positive = 1_000_000  # one request: contexts are text, files go elsewhere
    max_new_tokens: Natural = 0  # of one generation, at most; 0: what the window leaves


class Scheduler(Struct, frozen=True):
    policy: str = "round_robin"
    quantum: Positive = 32  # decoded tokens a slice: 3 % switching cost at 2,048 tokens of context
    queue: Positive = 4_096  # tickets waiting for one core; more are refused
    ageing_s: Seconds = 10.0  # of waiting is worth one step of nice
    outage_s: Seconds = 300.0  # a call waits this long for a server that is down, if none else can


class Core(Struct, frozen=True):
    """The embedded core."""

    model: str = "smollm2-135m"
    slots: Positive = 8  # sequences in one batch: past it decoding gains little on two cores
    threads: Natural = 0  # 0: as many as this process may use, at most 8
    cells: Positive = 16_384  # KV pool in tokens: 360 MiB for the default model at the full size
    ram_mb: Natural = 512  # for contexts paged out of the cells
    disk_mb: Natural = 2_048  # for those that RAM does not hold; beyond it they are recomputed
    restarts: Natural = 5  # of a crashed worker in a minute before it is given up


class Server(Struct, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 7311  # 0: any free one
    tcp: bool = True
    body_bytes: Positive = 8_000_000  # one request body
    heartbeat_s: Seconds = 15.0  # a comment on an open stream, so that proxies keep it
    aliases: dict[str, str] = field(default_factory=dict)  # a name on /v1 -> a model here


class Memory(Struct, frozen=True):
    """Records that agents keep; a quota counts text, data, tags and source in UTF-8."""

    record_bytes: Positive = 1_000_000  # one record; what is longer is a file
    process_bytes: Natural = 16_000_000  # of a process, unless mem_alloc says otherwise
    program_bytes: Natural = 64_000_000  # of a program
    user_bytes: Natural = 256_000_000  # of a user
    reserve_bytes: Natural = 4_000_000_000  # of all quotas that one user sets by mem_alloc
    cache_mb: Natural = 256  # of vectors in RAM, 1.5 KB a record; beyond it they are read again


class Journal(Struct, frozen=True):
    """What is kept of history; what living processes need stays, whatever it takes."""

    keep_days: Annotated[float, Meta(gt=0)] = 30.0  # of events, and of calls that no replay needs
    max_mb: Positive = 4_096  # of the file: what a laptop can spare; the oldest goes first


class Storage(Struct, frozen=True):
    """Volumes of files; a quota counts all versions, each chunk once, before it is compressed."""

    part_bytes: Positive = 5_000_000  # one write or read, within a request body; more goes in parts
    file_bytes: Positive = 1_000_000_000  # one file
    commit_files: Positive = 10_000  # changed by one call: it is one transaction
    path_bytes: Positive = 1_024  # of UTF-8
    process_bytes: Natural = 256_000_000  # of a process's volume, unless sto_alloc says otherwise
    program_bytes: Natural = 1_000_000_000  # of a program's
    user_bytes: Natural = 4_000_000_000  # of a user's
    reserve_bytes: Natural = 16_000_000_000  # of all quotas that one user sets by sto_alloc
    indexed_bytes: Natural = 1_000_000  # a text file that is larger is not searched
    cache_mb: Natural = 128  # of vectors in RAM, 1.5 KB a passage; beyond it they are read again


class Config(Struct, frozen=True):
    kernel: Kernel = Kernel()
    scheduler: Scheduler = Scheduler()
    core: Core = Core()
    server: Server = Server()
    memory: Memory = Memory()
    storage: Storage = Storage()
    journal: Journal = Journal()
    cores: dict[str, CoreSpec] = field(default_factory=dict)  # besides the models that are here


class Setting(Struct, frozen=True):
    """One value and where it came from: flag, the variable's name, the file, or default."""

    name: str
    value: Any
    source: str


_BOOLS = {"1": True, "true": True, "yes": True, "on": True}
_BOOLS |= {"0": False, "false": False, "no": False, "off": False}


def settings(paths: Paths, flags: dict[str, str] | None = None) -> list[Setting]:
    """Every value with its source; SetupError names a value that does not fit or is unknown."""
    flags = dict(flags or {})
    file = paths.config_file
    tables = _read(file)
    variables = {name for name in os.environ if _GROUP_VARIABLE.match(name)}
    found: list[Setting] = []
    for group in msgspec.structs.fields(Config):
        if group.name == "cores":
            continue
        table = tables.pop(group.name, {})
        if not isinstance(table, dict):
            raise SetupError(f"{file}: [{group.name}] must be a table, not {table!r}.")
        for value in msgspec.structs.fields(group.type):
            name = f"{group.name}.{value.name}"
            variable = f"AIOS_{group.name}_{value.name}".upper()
            written = table.pop(value.name, None)
            variables.discard(variable)
            if name in flags:
                text, source = flags.pop(name), "flag"
                found.append(Setting(name, _parse(text, value.type, name, source), source))
            elif variable in os.environ:
                text, source = os.environ[variable], variable
                found.append(Setting(name, _parse(text, value.type, name, source), source))
            elif written is not None:
                source = str(file)
                found.append(Setting(name, _fit(written, value.type, name, source), source))
            else:
                default = getattr(getattr(Config(), group.name), value.name)
                found.append(Setting(name, default, "default"))
        for unknown in table:
            raise SetupError(_unknown(f"{group.name}.{unknown}", str(file)))
    cores = tables.pop("cores", {})
    if not isinstance(cores, dict):
        raise SetupError(f"{file}: [cores] must hold tables, [cores.NAME], not {cores!r}.")
    for name, table in cores.items():
        spec = _fit(table, CoreSpec, f"cores.{name}", str(file))
        found.append(Setting(f"cores.{name}", spec, str(file)))
    for unknown in tables:
        raise SetupError(_unknown(unknown, str(file)))
    for unknown in flags:
        raise SetupError(_unknown(unknown, "a flag"))
    for unknown in sorted(variables):
        raise SetupError(_unknown(unknown, "the environment"))
    return found


_GROUP_VARIABLE = re.compile(
    "AIOS_(" + "|".join(n.upper() for n in Config.__struct_fields__ if n != "cores") + ")_"
)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} cannot be read as TOML: {error}.") from error


def _parse(text: str, kind: Any, name: str, source: str) -> Any:
    """A value from text: a word or a number as it stands, a table as JSON."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain is bool:
        return _fit(_BOOLS.get(text.lower(), text), kind, name, source)
    if plain in (str, int, float):
        return _fit(text, kind, name, source, strict=False)
    try:
        return _fit(msgspec.json.decode(text), kind, name, source)
    except msgspec.DecodeError as error:
        raise SetupError(_unfit(name, source, text, f"it is not JSON: {error}")) from error


def _fit(value: Any, kind: Any, name: str, source: str, strict: bool = True) -> Any:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise SetupError(_unfit(name, source, value, str(error))) from error


def _unfit(name: str, source: str, value: Any, why: str) -> str:
    given = "a flag" if source == "flag" else source
    return f"{name} cannot be {value!r}, which {given} gives: {why[0].lower()}{why[1:]}."


def _unknown(name: str, source: str) -> str:
    return f"there is no setting {name}, which {source} gives; `aios config show` lists them all."


def load(paths: Paths, flags: dict[str, str] | None = None) -> Config:
    groups: dict[str, dict[str, Any]] = {}
    for setting in settings(paths, flags):
        group, name = setting.name.split(".", 1)
        groups.setdefault(group, {})[name] = setting.value
    return msgspec.convert(groups, Config)
