"""What cannot be loaded is one sentence: what is wrong, with what value, what to do."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.transformers.core import TransformersCore
from aios.drivers.cores.transformers.start import load
from aios.errors import InvalidCall, SetupError
from aios.ports import Prompt, Slice
from tests.machine.tiny_models import (
    KINDS,
    Rig,
    bytes_alone,
    engine,
    make,
    prompt,
    sentence_pieces,
)

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), "mixtral")


def refusal(source: object, **options: Any) -> str:
    """The sentence; there is one."""
    with pytest.raises(SetupError) as caught:
        load(source=str(source), name="m", threads=1, slots=4, ram_bytes=0, **options)
    return one_sentence(caught.value)


def one_sentence(error: SetupError) -> str:
    message = error.message
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    return message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path}/nothing" in refusal(tmp_path / "nothing")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)


def test_a_folder_whose_weights_are_gone(tmp_path: Path) -> None:
    folder = make(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert str(folder) in message
    assert "model.safetensors" in message


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = make(tmp_path, "llama")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "cannot be loaded" in refusal(folder)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = make(tmp_path, "llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be loaded" in refusal(folder)


def test_a_file_instead_of_its_folder(folder: Path) -> None:
    message = refusal(folder / "model.safetensors")
    assert f"give its folder {folder}" in message


def test_a_gguf_file_that_is_not_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").touch()
    message = refusal(tmp_path, gguf_file="model.gguf")
    assert "no file model.gguf" in message
    assert "other.gguf" in message


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu:0"])
def test_a_device_that_does_not_exist(folder: Path, device: str) -> None:
    message = refusal(folder, device=device)
    assert repr(device) in message
    assert "auto, cpu or cuda:N" in message


def test_a_gpu_that_is_not_there(folder: Path) -> None:
    message = refusal(folder, device="cuda:97")
    assert "'cuda:97'" in message
    assert "use cuda:0" in message if HAS_GPU else "use cpu" in message
    message = refusal(folder, max_memory={"97": "24GB", "cpu": "1GB"})
    assert "the GPU 97" in message


@pytest.mark.parametrize(
    ("memory", "says"), [({"disk": "1GB"}, "'disk'"), ({"cpu": "much"}, "'much'")]
)
def test_a_memory_map_that_cannot_be_read(folder: Path, memory: dict[str, str], says: str) -> None:
    assert says in refusal(folder, max_memory=memory)


def test_weights_that_do_not_fit_are_not_even_read(folder: Path, tmp_path: Path) -> None:
    """The weights are not there at all: what they would take is known from the config."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    size = (folder / "model.safetensors").stat().st_size / (1 << 20)
    message = refusal(tmp_path, max_memory={"cpu": "30KB"})
    (said,) = re.findall(r"take ([0-9.]+) MiB in float32", message)
    assert float(said) == pytest.approx(size, rel=0.1)
    assert "0.03 MiB on the CPU" in message


def test_weights_that_fit_in_half_the_dtype(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    size = (folder / "model.safetensors").stat().st_size
    memory = {"cpu": f"{int(size * 0.75 / 1000)}KB"}
    assert "in float32" in refusal(tmp_path, max_memory=memory)
    message = refusal(tmp_path, max_memory=memory, dtype="bfloat16")
    assert "take" not in message  # the next thing that is missing


def test_an_unknown_dtype(folder: Path) -> None:
    assert "'int3'" in refusal(folder, dtype="int3")


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_quantization_without_its_package(folder: Path) -> None:
    assert "pip install bitsandbytes" in refusal(folder, quantization="4bit")


def test_an_unknown_quantization(folder: Path) -> None:
    assert "'2bit'" in refusal(folder, quantization="2bit")


def test_a_model_that_keeps_a_state_besides_keys_and_values(tmp_path: Path) -> None:
    sizes = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    message = refusal(make(tmp_path, "qwen3_next", **sizes))
    assert "choose a plain transformer" in message
    assert "qwen3_next" in message


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("bloom", {"n_layer": 2, "n_head": 4}), ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4})],
)
def test_a_model_whose_attention_cannot_be_replaced(
    kind: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    message = refusal(make(tmp_path, kind, **sizes))
    assert kind in message
    assert "choose a plain transformer" in message


# --- what is loaded -------------------------------------------------------------------------------


def test_a_smaller_dtype_is_exact_too(tmp_path: Path) -> None:
    rig = Rig(engine(make(tmp_path, "llama"), dtype="bfloat16"))
    assert rig.engine.abilities.exact_snapshots
    rig.engine.admit(1, prompt(1, 100))
    rig.advance(1, 3)
    rig.engine.freeze(1, tmp_path / "frozen")
    rig.engine.thaw(2, tmp_path / "frozen")
    rig.finish_all([1, 2])
    assert rig.bits[1][3:] == rig.bits[2]


def test_the_window_is_what_is_asked_for_and_no_more_than_was_trained(folder: Path) -> None:
    trained = engine(folder).abilities.context_tokens
    assert trained == 512
    assert engine(folder, context_tokens=100).abilities.context_tokens == 100
    assert engine(folder, context_tokens=10**6).abilities.context_tokens == trained
    assert engine(folder, cells=256).abilities.context_tokens == 256


def test_a_rope_that_changes_with_the_longest_of_the_batch_keeps_the_window_short(
    tmp_path: Path,
) -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    found = engine(
        make(
            tmp_path,
            "llama",
            rope_parameters=scaled | {"original_max_position_embeddings": 128},
        )
    )
    assert found.abilities.context_tokens == 128


def test_a_snapshot_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    ours, other = Rig(engine(folder)), engine(make(tmp_path / "m", "llama"))
    ours.engine.admit(1, prompt(1, 20))
    ours.advance(1, 2)
    ours.engine.freeze(1, tmp_path / "frozen")
    with pytest.raises(InvalidCall, match="is of the model"):
        other.thaw(1, tmp_path / "frozen")


@pytest.mark.parametrize("family", [bytes_alone, sentence_pieces])
def test_pieces_say_what_the_tokenizer_says(family: Callable[[], Any], tmp_path: Path) -> None:
    tokenizer = family()
    found = engine(make(tmp_path, "gemma", tokenizer, vocab_size=320))  # and logits for more
    text = "grüße, 世界 ab a cab 🦜"
    tokens = found.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(found._piece(token) for token in tokens) == text.encode()
    ends = tokenizer.convert_tokens_to_ids(["<|start|>", "<|end|>"])
    assert [found._piece(token) for token in ends] == [b"", b""]
    assert [found._spelling(token) for token in ends] == ["<|start|>", "<|end|>"]
    rig = Rig(found)
    found.admit(1, prompt(1, 20, temperature=50.0, new=40))
    rig.finish(1)
    assert max(rig.made[1]) < len(tokenizer)


# --- a hub ----------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Knows one repository, which is gated."""

    def do_HEAD(self) -> None:
        gated = self.path.startswith("/some/gated")
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "as asked")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def refused(source: str, cache: Path, **options: Any) -> str:
    """By a core with a worker of its own, whose libraries read the environment."""
    core = TransformersCore(source, "m", device="cpu", cache=cache, threads=1, **options)
    with pytest.raises(SetupError) as caught:
        await core.start()
    await core.close()
    return one_sentence(caught.value)


async def test_a_gated_repository(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    message = await refused("some/gated", tmp_path)
    assert "some/gated is gated and no token was given" in message
    message = await refused("some/gated", tmp_path, token="hf_secret")
    assert "the token given may not read it" in message
    assert "hf_secret" not in message


async def test_a_repository_that_is_not_there(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert "no repository some/thing" in await refused("some/thing", tmp_path)


async def test_a_hub_that_may_not_be_asked(
    hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cannot be reached" in await refused("some/thing", tmp_path)


@pytest.mark.long  # the library tries again for half a minute
async def test_a_hub_that_cannot_be_reached(
    hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in await refused("some/thing", tmp_path)


# --- GPUs -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no NVIDIA GPU here that PyTorch can use")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str, tmp_path: Path) -> None:
    """Alone, batched and restored: the same bits, on the GPU that auto takes."""
    folder = make(tmp_path / kind, kind)
    found = load(source=str(folder), name="m", threads=1, slots=8, ram_bytes=64 << 20)
    assert str(found.model.device).startswith("cuda")
    assert found.abilities.exact_snapshots
    rig = Rig(found)
    found.admit(1, prompt(1, 150))
    alone = rig.finish(1)
    for number in (2, 3, 4):
        found.admit(number, prompt(number, 40 * number))
    found.admit(5, prompt(1, 150))
    rig.advance(5, 3)
    found.freeze(5, tmp_path / "frozen")
    found.thaw(6, tmp_path / "frozen")
    rig.finish_all([2, 3, 4, 6])
    assert rig.bits[5] + rig.bits[6] == alone


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no NVIDIA GPU here that PyTorch can use")
async def test_a_core_on_a_gpu_with_a_memory_map(tmp_path: Path) -> None:
    core = TransformersCore(str(make(tmp_path, "gemma")), "m", max_memory={"0": "1GB"})
    await core.start()
    admitted = await core.admit(Prompt((Message("user", "Hi."),), Sampling(max_tokens=4, seed=1)))
    assert (await core.run(admitted.sequence, Slice(1))).prefilled > 0
    await core.close()
