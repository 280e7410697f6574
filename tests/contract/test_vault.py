"""What every ports.Vault must do; then what only keys in files can show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios.drivers.vault import FernetVault, KeyFiles
from aios.errors import InvalidCall, StoreFailed
from aios.ports import Vault
from aios.testing import named_key

SECRET = b"the launch code is 0000 \xff\x00"


@pytest.fixture(params=["files", "named"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Vault:
    return KeyFiles(tmp_path) if request.param == "files" else FernetVault(named_key)


@pytest.mark.parametrize("data", [b"", b"x", SECRET, os.urandom(100_000)])
def test_what_was_sealed_is_opened(vault: Vault, data: bytes) -> None:
    sealed = vault.seal("ann", data)
    assert vault.open("ann", sealed) == data
    assert vault.seal("ann", data) != sealed  # nobody sees that two secrets are the same
    assert len(data) < 8 or data not in sealed


def test_another_user_does_not_open_it(vault: Vault) -> None:
    with pytest.raises(InvalidCall, match="not sealed for bob here"):
        vault.open("bob", vault.seal("ann", SECRET))


@pytest.mark.parametrize("change", ["first", "last", "cut", "empty", "other"])
def test_what_was_changed_is_refused(vault: Vault, change: str) -> None:
    sealed = vault.seal("ann", SECRET)
    changed = {
        "first": b"h" + sealed[1:],
        "last": sealed[:-8] + b"AAAAAAA=",
        "cut": sealed[:-4],
        "empty": b"",
        "other": b"no token at all \xff",
    }[change]
    with pytest.raises(InvalidCall, match="has been changed: give the token whole"):
        vault.open("ann", changed)


# --- keys in files --------------------------------------------------------------------------------


def test_a_key_is_its_users_alone_and_stays(tmp_path: Path) -> None:
    sealed = KeyFiles(tmp_path).seal("ann", SECRET)
    [file] = tmp_path.iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("ann.vault", 0o600)
    assert KeyFiles(tmp_path).open("ann", sealed) == SECRET


@pytest.mark.parametrize("users", [("a/b", "a_b"), ("..", "."), ("../x", "x"), ("a.b", "a")])
def test_a_name_is_never_a_path_and_two_names_are_never_one_file(
    tmp_path: Path, users: tuple[str, str]
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    vault = KeyFiles(folder)
    sealed = [vault.seal(user, SECRET) for user in users]
    assert len(list(folder.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(InvalidCall):
        vault.open(users[1], sealed[0])


def test_a_key_half_written_by_a_dead_kernel_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "ann.draft").write_bytes(b"hal")
    vault = KeyFiles(tmp_path)
    assert vault.open("ann", vault.seal("ann", SECRET)) == SECRET
    assert [file.name for file in tmp_path.iterdir()] == ["ann.vault"]


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 44, b"A" * 43])
def test_a_damaged_key_says_so_and_is_left_alone(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "ann.vault").write_bytes(damage)
    with pytest.raises(StoreFailed, match="ann.vault is damaged: put a copy of it back"):
        KeyFiles(tmp_path).seal("ann", SECRET)
    assert (tmp_path / "ann.vault").read_bytes() == damage


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="cannot be used .*: check its rights"):
        KeyFiles(tmp_path / "gone").seal("ann", SECRET)
    (tmp_path / "bob.vault").mkdir()
    with pytest.raises(StoreFailed, match="bob.vault cannot be used"):
        KeyFiles(tmp_path).seal("bob", SECRET)
    with pytest.raises(StoreFailed, match="cannot be used"):
        KeyFiles(tmp_path).seal("x" * 300, SECRET)
