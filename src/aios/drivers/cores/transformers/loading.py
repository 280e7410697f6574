"""From the name of a model to the model and its tokenizer, or to one sentence that says why not.

What can be known before the weights are read is said before: whether the devices are there, and
whether the weights fit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import psutil
import torch
import transformers
from accelerate.utils import convert_file_size_to_int
from huggingface_hub import errors
from huggingface_hub.constants import ENDPOINT

from aios.drivers.cores.transformers import attention, experts
from aios.errors import SetupError

DTYPES = ("auto", "float32", "float16", "bfloat16")
BITS = {"4bit": 4.5, "8bit": 8.1}  # a weight, with the scales of its group
FREE = 0.9  # of a GPU's free memory is for weights where nothing else was asked for
GIB = 1 << 30


@dataclass(frozen=True)
class Wanted:
    """See TransformersCore."""

    source: str
    device: str = "auto"
    max_memory: dict[str, str] | None = None
    dtype: str = "auto"
    quantization: str | None = None
    gguf_file: str | None = None
    token: str | None = None
    cache: str | None = None


def load(wanted: Wanted) -> tuple[Any, Any]:
    """The model, whose attention is ours, and its tokenizer."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.AttentionInterface.register(attention.NAME, attention.attend)
    transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS.register(experts.NAME, experts.mix)
    _check_choices(wanted)
    place = _place(wanted)
    source = _source(wanted)
    where: dict[str, Any] = {"token": wanted.token, "cache_dir": wanted.cache}
    if wanted.gguf_file:
        where["gguf_file"] = wanted.gguf_file
    try:
        config = transformers.AutoConfig.from_pretrained(source, **where)
        _check_size(wanted, config, place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=_dtype(wanted.dtype),
            attn_implementation=attention.NAME,
            quantization_config=_quantization(wanted.quantization),
            **place,
            **where,
        )
    except SetupError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the libraries raise is one sentence here
        raise _refusal(wanted, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise SetupError(
            f"the tokenizer of {wanted.source} has no tokenizer.json that could be followed token "
            "by token; choose a model that has one."
        )
    return model.eval(), tokenizer


def _check_choices(wanted: Wanted) -> None:
    if wanted.dtype not in DTYPES:
        raise SetupError(f"dtype is {wanted.dtype!r}, but it must be one of {', '.join(DTYPES)}.")
    if wanted.quantization is None:
        return
    if wanted.quantization not in BITS:
        raise SetupError(f"quantization is {wanted.quantization!r}, but it must be 4bit or 8bit.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SetupError(
            f"quantization {wanted.quantization} needs the package bitsandbytes, which is not "
            "installed; `pip install bitsandbytes`, or leave quantization out."
        )


def _place(wanted: Wanted) -> dict[str, Any]:
    """Where the weights go, as from_pretrained takes it."""
    gpus, device = torch.cuda.device_count(), wanted.device
    there = f"{gpus} GPUs" if gpus > 1 else "one GPU, cuda:0" if gpus else "no GPU it can use"
    if device.startswith("cuda"):
        _, _, number = device.partition(":")
        if not number.isdigit() and number:
            raise SetupError(f"device is {device!r}, but it must be auto, cpu or cuda:N.")
        if int(number or 0) >= gpus:
            instead = f"cuda:0 to cuda:{gpus - 1}" if gpus > 1 else "cuda:0" if gpus else "cpu"
            raise SetupError(
                f"device is {device!r}, but PyTorch {torch.__version__} finds {there}; "
                f"use {instead} or auto."
            )
    elif device not in ("auto", "cpu"):
        raise SetupError(f"device is {device!r}, but it must be auto, cpu or cuda:N.")
    if wanted.max_memory is not None:
        return {"device_map": "auto", "max_memory": _memory(wanted.max_memory, gpus, there)}
    if device == "auto" and gpus:
        memory: dict[int | str, int] = {
            gpu: int(torch.cuda.mem_get_info(gpu)[0] * FREE) for gpu in range(gpus)
        }
        memory["cpu"] = int(psutil.virtual_memory().available * FREE)
        return {"device_map": "auto", "max_memory": memory}
    return {"device_map": {"": "cpu" if device in ("auto", "cpu") else device}}


def _memory(asked: dict[str, str], gpus: int, there: str) -> dict[int | str, int]:
    found: dict[int | str, int] = {}
    for device, size in asked.items():
        number = device.removeprefix("cuda:")
        if number.isdigit() and int(number) >= gpus:
            raise SetupError(
                f"max_memory names the GPU {device}, but PyTorch finds {there}; take it out."
            )
        if not number.isdigit() and device != "cpu":
            raise SetupError(f"max_memory names {device!r}; its keys are 0, 1 and so on, and cpu.")
        try:
            found[int(number) if number.isdigit() else "cpu"] = convert_file_size_to_int(size)
        except ValueError as error:
            raise SetupError(
                f"max_memory of {device} is {size!r}; write a size like 24GB or 800MiB."
            ) from error
    return found


def _source(wanted: Wanted) -> str:
    """The folder, or the repository's name; SetupError if it is a folder without a model."""
    path = Path(wanted.source).expanduser()
    if path.is_file():
        raise SetupError(
            f"{path} is a file; give its folder {path.parent} as the source, and gguf_file "
            f"{path.name!r} if it is a GGUF file."
        )
    if not path.is_dir():
        if wanted.source.startswith(("/", "~", ".")) or wanted.source.count("/") > 1:
            raise SetupError(f"there is no folder {path}; give a model's folder or repository.")
        return wanted.source
    if wanted.gguf_file:
        if not (path / wanted.gguf_file).is_file():
            others = ", ".join(sorted(f.name for f in path.glob("*.gguf"))) or "none"
            raise SetupError(
                f"there is no file {wanted.gguf_file} in {path}; the GGUF files there: {others}."
            )
    elif not (path / "config.json").is_file():
        raise SetupError(
            f"the folder {path} has no config.json, so it holds no model; name the folder that "
            "has one, or a gguf_file in it."
        )
    return str(path)


def _check_size(wanted: Wanted, config: Any, place: dict[str, Any]) -> None:
    """Refuse weights that the devices cannot hold, before any is read."""
    dtype = _dtype(wanted.dtype)
    if dtype == "auto":
        dtype = config.dtype or config.get_text_config().dtype or torch.float32
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    bits = BITS.get(wanted.quantization or "")
    size = 0
    for name, weights in model.named_parameters():  # tied ones come once
        is_reduced = bits and weights.ndim == 2 and "embed" not in name and "lm_head" not in name
        size += int(weights.numel() * (bits / 8 if bits and is_reduced else dtype.itemsize))
    if (memory := place.get("max_memory")) is None:
        device = place["device_map"][""]
        memory = {
            device: psutil.virtual_memory().available
            if device == "cpu"
            else torch.cuda.mem_get_info(device)[0]
        }
    room = ", ".join(f"{_gib(given)} on {_device(device)}" for device, given in memory.items())
    what = f"as {wanted.quantization}" if bits else f"in {str(dtype).removeprefix('torch.')}"
    advice = "allow more memory, a smaller dtype, or choose a smaller model"
    if size > sum(memory.values()):
        raise SetupError(
            f"the weights of {wanted.source} take {_gib(size)} {what}, but there are {room}; "
            f"{advice}."
        )
    if place["device_map"] == "auto" and not bits:
        layers = accelerate.infer_auto_device_map(
            model, memory, no_split_module_classes=model._no_split_modules, dtype=dtype
        )
        if "disk" in layers.values():
            raise SetupError(
                f"the weights of {wanted.source} take {_gib(size)} {what}, which do not fit layer "
                f"by layer into {room}; {advice}."
            )


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def _quantization(kind: str | None) -> Any:
    if kind is None:
        return None
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _device(key: int | str) -> str:
    return f"GPU {key}" if isinstance(key, int) else "the CPU" if key == "cpu" else key


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / (1 << 20):.2f} MiB"


def _refusal(wanted: Wanted, error: BaseException) -> SetupError:
    """What went wrong on the way to the weights, as one sentence."""
    source, causes = wanted.source, _causes(error)

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(errors.GatedRepoError):
        if wanted.token or os.environ.get("HF_TOKEN"):
            return SetupError(
                f"{source} is gated and the token given may not read it; ask for access on its "
                f"page {ENDPOINT}/{source}."
            )
        return SetupError(
            f"{source} is gated and no token was given; accept its terms on {ENDPOINT}/{source} "
            "and give a token (or set HF_TOKEN)."
        )
    if is_any(errors.RepositoryNotFoundError, errors.HFValidationError):
        return SetupError(
            f"there is no folder and no repository {source}; check the name (a private repository "
            "needs a token)."
        )
    if is_any(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError):
        return SetupError(
            f"{source} is not on this machine and {ENDPOINT} cannot be reached; give a folder that "
            "holds it, or try again with a connection."
        )
    return SetupError(
        f"{source} cannot be loaded ({first_line(error)}); "
        "choose a causal language model that transformers can load."
    )


def first_line(error: BaseException) -> str:
    """What kind of error, and the first line of what it says, for a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}" if lines else type(error).__name__


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def fingerprint(model: Any) -> str:
    """The id of a model's weights, hex: names, shapes, kinds, and 16 numbers of each of them.

    To hash gigabytes takes minutes; weights that differ do so nearly everywhere.
    """
    found = hashlib.blake2b(digest_size=32)
    for name, weights in model.state_dict().items():
        found.update(f"{name} {tuple(weights.shape)} {weights.dtype}\n".encode())
        if weights.device.type != "meta" and weights.numel():
            flat = weights.detach().reshape(-1)
            part = flat[:: max(1, flat.numel() // 16)][:16].contiguous().cpu()
            found.update(part.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
