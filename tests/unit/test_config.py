"""Where things are, and which value wins."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from aios.config import Config, Paths, Setting, load, settings
from aios.errors import SetupError


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for name in [name for name in os.environ if name.startswith("AIOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "home"))
    return Paths.find()


def write(paths: Paths, text: str) -> None:
    paths.make()
    paths.config_file.write_text(text)


def setting(paths: Paths, name: str, **flags: str) -> Setting:
    given = {flag.replace("__", "."): value for flag, value in flags.items()}
    return next(found for found in settings(paths, given) if found.name == name)


# --- where things are -----------------------------------------------------------------------------


def test_home_holds_everything(paths: Paths, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for path in (
        *(paths.config_file, paths.journal, paths.keys, paths.logs, paths.snapshots),
        *(paths.models, paths.socket),
    ):
        assert path.is_relative_to(home)


def test_home_may_be_relative_and_may_begin_with_a_tilde(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIOS_HOME", "here")
    assert Paths.find().data == tmp_path / "here" / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AIOS_HOME", "~/there")
    assert Paths.find().data == tmp_path / "there" / "data"


def test_without_a_home_they_are_where_the_platform_says(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_HOME")
    for name in ("CONFIG_HOME", "DATA_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name))
    found = Paths.find()
    assert found.config == tmp_path / "CONFIG_HOME" / "aios"
    assert found.data == tmp_path / "DATA_HOME" / "aios"
    assert found.models == tmp_path / "CACHE_HOME" / "aios" / "models"
    assert found.socket == tmp_path / "RUNTIME_DIR" / "aios" / "aios.sock"


def test_models_may_be_shared_by_several_homes(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_MODELS", str(tmp_path / "models"))
    shared = Paths.find()
    assert (shared.models, shared.data) == (tmp_path / "models", paths.data)
    monkeypatch.delenv("AIOS_HOME")
    assert Paths.find().models == tmp_path / "models"


def test_directories_are_for_this_user_alone(paths: Paths) -> None:
    paths.data.mkdir(parents=True, mode=0o755)
    old = os.umask(0)
    try:
        paths.make()
        paths.make()
    finally:
        os.umask(old)
    for directory in (paths.data, paths.keys, paths.runtime, paths.config, paths.cache):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file in the way")
    with pytest.raises(SetupError, match="home/config cannot be made: .*; mend that, or set AIOS"):
        paths.make()


@pytest.mark.skipif(os.getuid() == 0, reason="root owns and may do everything")
def test_a_directory_of_somebody_else_is_refused(paths: Paths) -> None:
    theirs = msgspec.structs.replace(paths, runtime=Path("/"))
    with pytest.raises(SetupError, match="/ belongs to the user with id 0"):
        theirs.make()


# --- which value wins -----------------------------------------------------------------------------


def test_flag_then_environment_then_file_then_default(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "scheduler.quantum"
    assert setting(paths, name) == Setting(name, 32, "default")
    write(paths, "[scheduler]\nquantum = 8\n")
    assert setting(paths, name) == Setting(name, 8, str(paths.config_file))
    monkeypatch.setenv("AIOS_SCHEDULER_QUANTUM", "16")
    assert setting(paths, name) == Setting(name, 16, "AIOS_SCHEDULER_QUANTUM")
    assert setting(paths, name, scheduler__quantum="24") == Setting(name, 24, "flag")
    assert load(paths, {"scheduler.quantum": "24"}).scheduler.quantum == 24


def test_the_defaults_are_the_configuration(paths: Paths) -> None:
    assert load(paths) == Config()
    groups = msgspec.to_builtins(Config())
    names = [f"{group}.{name}" for group, values in groups.items() for name in values]
    assert [found.name for found in settings(paths)] == names


def test_every_kind_of_value_from_text(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_SERVER_TCP", "Off")
    monkeypatch.setenv("AIOS_SERVER_ALIASES", '{"gpt-4o": "smollm2-135m"}')
    monkeypatch.setenv("AIOS_KERNEL_KILL_GRACE_S", "2")
    monkeypatch.setenv("AIOS_CORE_MODEL", "17")
    config = load(paths)
    assert config.server.tcp is False
    assert config.server.aliases == {"gpt-4o": "smollm2-135m"}
    assert config.kernel.kill_grace_s == 2.0
    assert config.core.model == "17"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"core.slots": "many"}, "core.slots cannot be 'many', which a flag gives: expected `int`"),
        ({"core.slots": "0"}, "core.slots cannot be '0'.* >= 1"),
        ({"core.slots": "2.5"}, "core.slots cannot be '2.5'"),
        ({"server.port": "65536"}, "server.port cannot be '65536'.* <= 65535"),
        ({"server.tcp": "maybe"}, "server.tcp cannot be 'maybe'.*expected `bool`"),
        ({"server.aliases": "a=b"}, "server.aliases cannot be 'a=b'.*it is not JSON"),
        ({"server.aliases": "[1]"}, r"server.aliases cannot be \[1\].*expected `object`"),
        ({"kernel.zombie_s": "-1"}, "kernel.zombie_s cannot be '-1'"),
        ({"kernel.zombies": "1"}, "there is no setting kernel.zombies, which a flag gives"),
        ({"quantum": "1"}, "there is no setting quantum"),
    ],
)
def test_a_flag_that_does_not_fit(paths: Paths, flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence) as refused:
        settings(paths, flags)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[scheduler\n", "config.toml cannot be read as TOML"),
        ("[scheduler]\nquantum = '8'\n", "scheduler.quantum cannot be '8', which .*config.toml"),
        ("[scheduler]\nquantum = true\n", "scheduler.quantum cannot be True"),
        ("[scheduler]\nquantums = 8\n", "there is no setting scheduler.quantums, which .*config"),
        ("[sheduler]\nquantum = 8\n", "there is no setting sheduler"),
        ("scheduler = 8\n", r"\[scheduler\] must be a table, not 8"),
    ],
)
def test_a_file_that_does_not_fit(paths: Paths, text: str, sentence: str) -> None:
    write(paths, text)
    with pytest.raises(SetupError, match=sentence) as refused:
        settings(paths)
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_text(paths: Paths) -> None:
    paths.make()
    paths.config_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match="cannot be read as TOML"):
        settings(paths)


def test_a_variable_that_names_no_setting(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_TASK", "is no setting, and may be there")
    settings(paths)
    monkeypatch.setenv("AIOS_CORE_SLOT", "4")
    with pytest.raises(SetupError, match="AIOS_CORE_SLOT, which the environment gives"):
        settings(paths)


def test_a_bad_value_that_is_overridden_still_has_its_source_named(paths: Paths) -> None:
    write(paths, "[core]\nslots = 0\n")
    with pytest.raises(SetupError, match="core.slots cannot be 0"):
        settings(paths)
    assert setting(paths, "core.slots", core__slots="2").value == 2
