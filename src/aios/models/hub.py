"""Fetches a GGUF file from the Hugging Face hub, or another that HF_ENDPOINT names.

By the hub's own library, with its user's settings (HF_TOKEN, HF_HOME, proxies) and into its cache,
so what is there already is not fetched again. It runs as a process of its own, for its settings are
read once and it can be killed at any moment: python -m aios.models.hub OWNER/REPOSITORY FILE prints
``DONE TOTAL`` in bytes as it goes on, and ends with a line of JSON, an ``_End``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from aios.errors import (
    BY_CODE,
    AiosError,
    DriverError,
    InvalidCall,
    NotFound,
    PermissionDenied,
    SetupError,
)
from aios.models.download import last_line, wait

SCHEME = "hf:"
_COUNTS = re.compile(rb"^(\d+) (\d+)\n", re.MULTILINE)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


class HubFile(NamedTuple):
    """repository is OWNER/NAME; file may lie in folders of it."""

    repository: str
    file: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}/{self.file}"


class _End(Struct, omit_defaults=True):
    """How it ended: the file, or the code and the sentence of an error."""

    path: str = ""
    code: str = ""
    message: str = ""


def parse(reference: str) -> HubFile:
    """``hf:OWNER/REPOSITORY/FILE.gguf``; InvalidCall if it is none."""
    steps = reference.removeprefix(SCHEME).split("/")
    if len(steps) < 3 or not all(step.strip(". ") for step in steps):
        raise InvalidCall(
            f"{reference!r} names no file on the hub; write hf:OWNER/REPOSITORY/FILE.gguf."
        )
    if not steps[-1].lower().endswith(".gguf"):
        raise InvalidCall(
            f"{reference} is not a GGUF file by its name; other kinds of models run on a "
            "transformers core, see `aios core add --help`."
        )
    if _PART.search(steps[-1].lower()):
        raise InvalidCall(
            f"{reference} is one of several parts; choose a model that is one file, or fetch all, "
            "merge them and `aios model import` what they give."
        )
    return HubFile("/".join(steps[:2]), "/".join(steps[2:]))


def fetch(wanted: HubFile, room: Path, report: Callable[[int, int], None]) -> Path:
    """The file, in the hub's own cache; room is a directory for what the library says.

    NotFound, PermissionDenied (gated, or private), DriverError (it did not come).
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise SetupError(
            f"{wanted} needs the package huggingface_hub: install it with "
            "`pip install 'aios[hub]'`, or fetch the file and `aios model import` it."
        )
    told, complaints = room / "told", room / "complaints"
    with open(told, "wb") as output, open(complaints, "wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "aios.models.hub", wanted.repository, wanted.file],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={"HF_HUB_DISABLE_TELEMETRY": "1", **os.environ},
        )

        def look() -> None:
            counts = _COUNTS.findall(_tail(told))
            if counts:
                report(int(counts[-1][0]), int(counts[-1][1]))

        wait(child, look)
        look()
    lines = told.read_bytes().splitlines() or [b""]
    try:
        end = msgspec.json.decode(lines[-1], type=_End)
    except msgspec.DecodeError:
        raise DriverError(
            f"{wanted} could not be fetched: {last_line(complaints.read_text(errors='replace'))} "
            f"(status {child.returncode})."
        ) from None
    if end.code:
        raise BY_CODE[end.code](end.message)
    return Path(end.path)


def _tail(file: Path) -> bytes:
    """Its end, for a long download has many lines."""
    with open(file, "rb") as told:
        told.seek(max(0, os.fstat(told.fileno()).st_size - 4096))
        return told.read()


# --- in the process of its own --------------------------------------------------------------------


def _download(wanted: HubFile) -> str:
    from huggingface_hub import (  # here: only this process needs them
        get_hf_file_metadata,
        get_token,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from tqdm.std import tqdm

    class Told(tqdm):  # type: ignore[misc]
        """A progress bar that is drawn as a line of numbers."""

        def display(self, *_: Any, **__: Any) -> bool:
            if self.total:
                _say(f"{min(self.n, self.total)} {self.total}")
            return True

        def update_transfer(self, _: int) -> None:
            """Bytes on the network, which the library counts apart for some files."""

    if not isinstance(try_to_load_from_cache(wanted.repository, wanted.file), str):
        # asked once by ourselves: without a network the library would ask again for half a minute
        url = hf_hub_url(wanted.repository, wanted.file)
        size = get_hf_file_metadata(url, token=get_token()).size
        _say(f"0 {size or 0}")
    return str(hf_hub_download(wanted.repository, wanted.file, tqdm_class=Told))


def _refusal(error: Exception, wanted: HubFile) -> AiosError:
    """What the library's error means here."""
    import httpx2
    from huggingface_hub import constants, errors, get_token

    hub = constants.ENDPOINT
    remedy = (
        "set HF_TOKEN to a token that may read it"
        if get_token() is None
        else "the token in HF_TOKEN (or the one that you logged in with) may not read it"
    )
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.GatedRepoError):
        return PermissionDenied(
            f"{wanted} is gated (status {status}): agree to its terms at "
            f"{hub}/{wanted.repository}, and {remedy}."
        )
    if status in (401, 403):
        return PermissionDenied(
            f"{hub} does not show {wanted} to you (status {status}): check its name, and if it is "
            f"private or gated, {remedy}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(f"there is no repository {wanted.repository} on {hub}; check its name.")
    if isinstance(error, errors.RemoteEntryNotFoundError | errors.RevisionNotFoundError):
        return NotFound(
            f"the repository {wanted.repository} has no file {wanted.file}; see "
            f"{hub}/{wanted.repository}/tree/main for those that it has."
        )
    if isinstance(error, errors.HFValidationError):
        return InvalidCall(f"{wanted} names no file on the hub: {last_line(str(error))}.")
    if isinstance(error, OSError | httpx2.HTTPError | ValueError):
        return DriverError(
            f"{wanted} could not be fetched from {hub}: {_clause(error)}; nothing was kept, check "
            "the network and try again."
        )
    raise error


def _clause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(repository: str, file: str) -> None:
    wanted = HubFile(repository, file)
    try:
        end = _End(path=_download(wanted))
    except Exception as error:  # noqa: BLE001 - told to the process that waits for it
        refusal = _refusal(error, wanted)
        end = _End(code=refusal.code, message=refusal.message)
    _say(msgspec.json.encode(end).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
