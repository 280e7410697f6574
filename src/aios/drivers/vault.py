"""Seals data under a key for each user, kept in a file of its own beside the database."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from cryptography.fernet import Fernet, InvalidToken

from aios.errors import InvalidCall, StoreFailed


class FernetVault:
    """A ports.Vault: Fernet (AES-128-CBC with HMAC-SHA256); *key_of* gives a user's key."""

    def __init__(self, key_of: Callable[[str], bytes]) -> None:
        self._key_of = key_of
        self._keys: dict[str, Fernet] = {}

    def seal(self, user: str, data: bytes) -> bytes:
        return self._key(user).encrypt(data)

    def open(self, user: str, sealed: bytes) -> bytes:
        try:
            return self._key(user).decrypt(sealed)
        except InvalidToken as error:
            raise InvalidCall(
                f"this was not sealed for {user} here, or has been changed: give the token whole."
            ) from error

    def _key(self, user: str) -> Fernet:
        if user not in self._keys:
            self._keys[user] = Fernet(self._key_of(user))
        return self._keys[user]


class KeyFiles(FernetVault):
    """The keys lie in *folder*, made on first use: ``USER.vault``, which only its owner may read.

    Who has this file and the database can read all that is sealed; without it nobody can.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(self._read)
        self._folder = folder

    def __repr__(self) -> str:
        return f"<KeyFiles {self._folder}>"

    def _read(self, user: str) -> bytes:
        file = self._folder / f"{quote(user, safe='')}.vault"
        try:
            if not file.exists():
                self._write(file, Fernet.generate_key())
            key = file.read_bytes()
        except OSError as error:
            raise StoreFailed(
                f"the key file {file} cannot be used ({error.strerror}): check its rights."
            ) from error
        try:
            Fernet(key)
        except ValueError as error:
            raise StoreFailed(
                f"the key file {file} is damaged: put a copy of it back; if there is none, what "
                "was sealed is lost, and moving the file away lets aios make a new key."
            ) from error
        return key

    def _write(self, file: Path, key: bytes) -> None:
        """Put a key in place, whole and durable: what it seals may be on disk a moment later."""
        draft = file.with_suffix(".draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(key)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
