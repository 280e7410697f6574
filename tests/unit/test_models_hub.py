"""Pulling from the hub, by its real library, from a hub on loopback that fails as it is told."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_models_gguf import write_model

from aios.errors import (
    Conflict,
    DriverError,
    InvalidCall,
    NotFound,
    PermissionDenied,
    SetupError,
)
from aios.models import ModelStore, hub

COMMIT = "a" * 40
TOKEN = "hf_good"
WANTED = "hf:ann/tiny-GGUF/tiny.gguf"


class Hub(ThreadingHTTPServer):
    """One repository, ann/tiny-GGUF, and ann/gated, which wants a token."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = files
        self.cuts = 0  # downloads that will end in the middle
        self.goes_away = False  # after the last of them
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        owner, name, _, _, *steps = self.path.strip("/").split("/")
        content = self.server.files.get("/".join(steps))
        if owner != "ann":
            self.refuse(404, "RepoNotFound")
        elif name == "secret":
            self.refuse(401, "RepoNotFound")
        elif name == "forbidden":
            self.refuse(403, "")
        elif name == "gated" and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.refuse(403 if "authorization" in self.headers else 401, "GatedRepo")
        elif content is None:
            self.refuse(404, "EntryNotFound")
        elif self.server.goes_away and not self.server.cuts:
            self.refuse(503, "")
        else:
            self.give(content, with_body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, content: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not with_body:
            return
        if self.server.cuts:
            self.server.cuts -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    gguf = write_model(tmp_path / "source.gguf").read_bytes()
    server = Hub({"tiny.gguf": gguf, "q4/deep.gguf": gguf, "page.gguf": b"<html>no model</html>"})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def left_over(store: ModelStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()} - {".lock"}


def test_pull_gets_checks_and_imports(serving: Hub, store: ModelStore, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    model = store.pull_from_hub(WANTED, progress=lambda *at: stages.append(at))
    assert model.path.read_bytes() == serving.files["tiny.gguf"]
    assert (model.name, model.source, model.licence) == ("tiny", WANTED, "mit")
    assert left_over(store) == {"tiny.gguf", "tiny.json"}
    size = len(serving.files["tiny.gguf"])
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["download", "copy"]
    assert [at for at in stages if at[0] == "download"][-1] == ("download", size, size)
    assert {total for _, _, total in stages} == {size}
    assert list((tmp_path / "hf" / "hub").rglob("tiny.gguf"))  # where HF_HOME says
    assert store.pull_from_hub(WANTED) == model
    assert all("/ann/tiny-GGUF/resolve/" in asked for asked in serving.asked)  # nothing else
    assert len([asked for asked in serving.asked if asked.startswith("GET")]) == 1


def test_a_file_in_a_folder_and_a_name_of_ones_own(serving: Hub, store: ModelStore) -> None:
    model = store.pull_from_hub("hf:ann/tiny-GGUF/q4/deep.gguf", "mine")
    assert (model.name, model.source) == ("mine", "hf:ann/tiny-GGUF/q4/deep.gguf")
    with pytest.raises(Conflict, match="there is a model mine already"):
        store.pull_from_hub(WANTED, "mine")
    with pytest.raises(InvalidCall, match="smollm2-135m is a name of the catalogue"):
        store.pull_from_hub(WANTED, "smollm2-135m")
    assert not [asked for asked in serving.asked if "tiny.gguf" in asked]


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_gated_one_with_a_token(
    serving: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, TOKEN)
    assert store.pull_from_hub("hf:ann/gated/tiny.gguf").name == "tiny"


@pytest.mark.parametrize(
    ("reference", "token", "kind", "words"),
    [
        ("hf:ann/gated/tiny.gguf", "", PermissionDenied, ("status 401", "agree", "set HF_TOKEN")),
        ("hf:ann/gated/tiny.gguf", "bad", PermissionDenied, ("status 403", "token in HF_TOKEN")),
        ("hf:ann/secret/tiny.gguf", "", PermissionDenied, ("status 401", "set HF_TOKEN")),
        ("hf:ann/forbidden/tiny.gguf", "", PermissionDenied, ("status 403", "set HF_TOKEN")),
        ("hf:ann/tiny-GGUF/none.gguf", "", NotFound, ("ann/tiny-GGUF has no file none.gguf",)),
        ("hf:bob/tiny/tiny.gguf", "", NotFound, ("no repository bob/tiny",)),
        ("hf:ann/tiny-GGUF/page.gguf", "", InvalidCall, ("page.gguf is not a whole GGUF file",)),
        ("hf:ann/--/tiny.gguf", "", InvalidCall, ("names no file on the hub",)),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    serving: Hub,
    store: ModelStore,
    monkeypatch: pytest.MonkeyPatch,
    reference: str,
    token: str,
    kind: type[Exception],
    words: tuple[str, ...],
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind) as refused:
        store.pull_from_hub(reference)
    message = str(refused.value)
    assert all(word in message for word in (*words, reference.split("/")[1])), message
    assert message.endswith(".")
    assert "\n" not in message
    assert left_over(store) == set()


def test_a_download_that_is_cut_off_is_tried_again(serving: Hub, store: ModelStore) -> None:
    serving.cuts = 1
    assert store.pull_from_hub(WANTED).path.read_bytes() == serving.files["tiny.gguf"]
    assert len([asked for asked in serving.asked if asked.startswith("GET")]) == 2


def test_a_download_that_is_broken_off_is_one_sentence(serving: Hub, store: ModelStore) -> None:
    serving.cuts, serving.goes_away = 1, True
    with pytest.raises(DriverError, match="could not be fetched from .*nothing was kept") as failed:
        store.pull_from_hub(WANTED)
    assert "\n" not in failed.value.message
    assert left_over(store) == set()
    serving.goes_away = False
    assert store.pull_from_hub(WANTED).name == "tiny"


def test_without_a_network(
    serving: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(DriverError, match="could not be fetched from .*check the network"):
            store.pull_from_hub(WANTED)
    assert left_over(store) == set()


def test_what_is_in_the_hubs_cache_needs_no_network(
    serving: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pull_from_hub(WANTED)
    store.remove("tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert store.pull_from_hub(WANTED).path.read_bytes() == serving.files["tiny.gguf"]


def test_an_interrupted_pull_leaves_nothing(serving: Hub, store: ModelStore) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull_from_hub(WANTED, progress=interrupt)
    assert left_over(store) == set()


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("hf:", "names no file on the hub"),
        ("hf:ann/tiny.gguf", "names no file on the hub"),
        ("hf:ann/../tiny.gguf", "names no file on the hub"),
        ("hf:ann//tiny.gguf", "names no file on the hub"),
        ("hf:ann/tiny/model.safetensors", "is not a GGUF file by its name"),
        ("hf:ann/tiny/big-00001-of-00003.gguf", "one of several parts"),
    ],
)
def test_what_is_no_reference(store: ModelStore, reference: str, words: str) -> None:
    with pytest.raises(InvalidCall, match=words):
        store.pull_from_hub(reference)
    assert not store.directory.exists()


def test_without_the_hubs_library(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SetupError, match=r"pip install 'aios\[hub\]'"):
        store.pull_from_hub(WANTED)
    assert left_over(store) == set()


def test_a_process_that_dies_is_one_sentence(
    serving: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "huggingface_hub"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise SystemExit('it is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(DriverError, match=r"could not be fetched: it is broken \(status 1\)"):
        store.pull_from_hub(WANTED)


def test_a_reference_reads_as_it_was_written() -> None:
    wanted = hub.parse("hf:ann/tiny-GGUF/q4/deep.gguf")
    assert (wanted.repository, wanted.file) == ("ann/tiny-GGUF", "q4/deep.gguf")
    assert str(wanted) == "hf:ann/tiny-GGUF/q4/deep.gguf"
