"""Seals data under a key for each user, kept in a file of its own beside the database."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from aios.errors import InvalidCall, StoreFailed


class KeyFiles:
    """A ports.Vault: Fernet (AES-128-CBC with HMAC-SHA256), the keys in *folder*, mode 0600."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: dict[str, Fernet] = {}

    def __repr__(self) -> str:
        return f"<KeyFiles {self._folder}>"

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
            self._keys[user] = Fernet(self._read(user))
        return self._keys[user]

    def _read(self, user: str) -> bytes:
        file = self._folder / f"{user.replace('/', '_')}.vault"
        try:
            if not file.exists():
                new = file.with_suffix(".new")
                handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(handle, "wb") as out:
                    out.write(Fernet.generate_key())
                    out.flush()
                    os.fsync(out.fileno())
                new.replace(file)
            return file.read_bytes()
        except OSError as error:
            raise StoreFailed(
                f"the key file {file} cannot be used ({error.strerror}): check its rights."
            ) from error
