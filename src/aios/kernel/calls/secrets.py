"""Calls on secrets: data sealed under its user's key, and opened again.

What is sealed or opened is in no record: the journal has these calls without their data (kept.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aios.abi import calls as abi
from aios.errors import InvalidCall
from aios.kernel.process import OpenCall, Process

if TYPE_CHECKING:
    from aios.kernel.kernel import Kernel


async def sys_encrypt_data(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.EncryptData
) -> abi.Sealed:
    return abi.Sealed(kernel.vault.seal(target.user, request.data).decode("ascii"))


async def sys_decrypt_data(
    kernel: Kernel, call: OpenCall, target: Process, request: abi.DecryptData
) -> abi.Opened:
    return _opened(kernel, target, request)


async def opened_again(
    kernel: Kernel, caller: Process, request: abi.DecryptData, reply: abi.Opened
) -> abi.Opened:
    """For a second life: the recorded reply has no data."""
    return _opened(kernel, caller, request)


def _opened(kernel: Kernel, process: Process, request: abi.DecryptData) -> abi.Opened:
    try:
        sealed = request.token.strip().encode("ascii")
    except UnicodeEncodeError as error:
        raise InvalidCall(
            "the token holds signs that no token has: give what encrypt_data returned, whole."
        ) from error
    return abi.Opened(kernel.vault.open(process.user, sealed))
