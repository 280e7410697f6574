"""llama.cpp's C API by ctypes: the library, a loaded model, a context.

The wheel ``xllamacpp`` exports the whole C API without documenting it, so the layout of its two
parameter structs is checked against the library's own defaults at the start; AIOS_LIBLLAMA names
another library with the same layout. Nothing here decides anything.

Units: positions, cells and lengths are tokens; states are bytes.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
import os
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from aios.errors import CoreFailed, SetupError

BATCH = 64  # tokens in one llama_decode: the grid of engine.py
OUTPUTS = 256  # sequence ids, and the rows of logits that the library reserves for them
CONTROL = 1 << 3  # llama_token_attr

_i32, _u32, _f32, _p, _bool = c.c_int32, c.c_uint32, c.c_float, c.c_void_p, c.c_bool


class _ModelParams(c.Structure):
    _fields_ = [
        ("devices", _p),
        ("tensor_buft_overrides", _p),
        ("n_gpu_layers", _i32),
        ("split_mode", _i32),
        ("load_mode", _i32),
        ("lazy_mode", _i32),
        ("main_gpu", _i32),
        ("tensor_split", _p),
        ("progress_callback", _p),
        ("progress_data", _p),
        ("kv_overrides", _p),
        ("vocab_only", _bool),
        ("check_tensors", _bool),
        ("use_extra_bufts", _bool),
        ("no_host", _bool),
        ("no_alloc", _bool),
        ("load_mtp", _bool),
    ]


class _ContextParams(c.Structure):
    _fields_ = [
        ("n_ctx", _u32),
        ("n_batch", _u32),
        ("n_ubatch", _u32),
        ("n_seq_max", _u32),
        ("n_rs_seq", _u32),
        ("n_outputs_max", _u32),
        ("n_outputs_max_per_seq", _u32),
        ("n_threads", _i32),
        ("n_threads_batch", _i32),
        ("ctx_type", _i32),
        ("rope_scaling_type", _i32),
        ("pooling_type", _i32),
        ("attention_type", _i32),
        ("flash_attn_type", _i32),
        ("rope_freq_base", _f32),
        ("rope_freq_scale", _f32),
        ("yarn_ext_factor", _f32),
        ("yarn_attn_factor", _f32),
        ("yarn_beta_fast", _f32),
        ("yarn_beta_slow", _f32),
        ("yarn_orig_ctx", _u32),
        ("defrag_thold", _f32),
        ("cb_eval", _p),
        ("cb_eval_data", _p),
        ("type_k", _i32),
        ("type_v", _i32),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", _p),
        ("abort_data", _p),
        ("embeddings", _bool),
        ("offload_kqv", _bool),
        ("no_perf", _bool),
        ("op_offload", _bool),
        ("swa_full", _bool),
        ("kv_unified", _bool),
        ("samplers", _p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", _p),
    ]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", _i32),
        ("token", _p),
        ("embd", _p),
        ("pos", _p),
        ("n_seq_id", _p),
        ("seq_id", _p),
        ("logits", _p),
    ]


_LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, _p)

_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # name: (result, *arguments)
    "llama_backend_init": (None,),
    "llama_log_set": (None, _LogCallback, _p),
    "llama_model_default_params": (_ModelParams,),
    "llama_context_default_params": (_ContextParams,),
    "llama_model_load_from_file": (_p, c.c_char_p, _ModelParams),
    "llama_model_free": (None, _p),
    "llama_model_get_vocab": (_p, _p),
    "llama_model_n_ctx_train": (_i32, _p),
    "llama_model_n_swa": (_i32, _p),
    "llama_model_is_recurrent": (_bool, _p),
    "llama_model_is_hybrid": (_bool, _p),
    "llama_model_has_encoder": (_bool, _p),
    "llama_model_chat_template": (c.c_char_p, _p, c.c_char_p),
    "llama_init_from_model": (_p, _p, _ContextParams),
    "llama_free": (None, _p),
    "llama_set_n_threads": (None, _p, _i32, _i32),
    "llama_decode": (_i32, _p, _Batch),
    "llama_get_logits_ith": (_p, _p, _i32),
    "llama_get_memory": (_p, _p),
    "llama_memory_clear": (None, _p, _bool),
    "llama_memory_seq_rm": (_bool, _p, _i32, _i32, _i32),
    "llama_memory_seq_cp": (None, _p, _i32, _i32, _i32, _i32),
    "llama_memory_seq_pos_max": (_i32, _p, _i32),
    "llama_state_seq_get_size": (c.c_size_t, _p, _i32),
    "llama_state_seq_get_data": (c.c_size_t, _p, _p, c.c_size_t, _i32),
    "llama_state_seq_set_data": (c.c_size_t, _p, _p, c.c_size_t, _i32),
    "llama_vocab_n_tokens": (_i32, _p),
    "llama_vocab_is_eog": (_bool, _p, _i32),
    "llama_vocab_eos": (_i32, _p),
    "llama_vocab_bos": (_i32, _p),
    "llama_vocab_get_add_bos": (_bool, _p),
    "llama_vocab_get_attr": (_i32, _p, _i32),
    "llama_tokenize": (_i32, _p, c.c_char_p, _i32, _p, _i32, _bool, _bool),
    "llama_token_to_piece": (_i32, _p, _i32, _p, _i32, _i32, _bool),
}


def _find() -> Path:
    if named := os.environ.get("AIOS_LIBLLAMA"):
        if not Path(named).is_file():
            raise SetupError(f"AIOS_LIBLLAMA names {named!r}, which is not a file.")
        return Path(named)
    wheel = importlib.util.find_spec("xllamacpp")
    if wheel is None or wheel.origin is None:
        raise SetupError("the embedded core needs the package xllamacpp; `pip install xllamacpp`.")
    return Path(wheel.origin).parent / "xllamacpp.abi3.so"


def _same_layout(library: Any) -> bool:
    """Are the defaults where this file expects them? (1 is the half-precision KV type.)"""
    context = library.llama_context_default_params()
    model = library.llama_model_default_params()
    sizes = (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max)
    return (
        sizes == (512, 2048, 512, 1)
        and (context.flash_attn_type, context.type_k, context.type_v) == (-1, 1, 1)
        and context.yarn_ext_factor == -1.0
        and (context.abort_callback, context.samplers, context.n_samplers) == (None, None, 0)
        and (context.embeddings, context.offload_kqv, context.ctx_other) == (False, True, None)
        and (model.vocab_only, model.use_extra_bufts, model.no_alloc) == (False, True, False)
    )


class Library:
    """The loaded library; ``complaints`` are its last warnings and errors."""

    def __init__(self) -> None:
        path = _find()
        if path.name.startswith("xllamacpp"):
            importlib.import_module("xllamacpp")  # its own import resolves Python's symbols first
        try:
            self.c: Any = c.CDLL(str(path))
            for name, (result, *arguments) in _FUNCTIONS.items():
                function = getattr(self.c, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise SetupError(f"{path} is not a llama.cpp library aios can use: {error}.") from error
        if not _same_layout(self.c):
            raise SetupError(
                f"{path} lays its parameters out in a way aios does not know; "
                "install the version of xllamacpp that the constraints file names."
            )
        self.complaints: list[str] = []
        self._log = _LogCallback(self._hear)  # kept: the library holds only a pointer
        self.c.llama_log_set(self._log, None)
        self.c.llama_backend_init()

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        if level in (3, 4):  # ggml_log_level: warning, error
            self.complaints = [*self.complaints[-9:], text.decode("utf-8", "replace").strip()]


@cache
def library() -> Library:
    return Library()


class Model:
    """A GGUF file, loaded: its vocabulary and what it says about itself."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SetupError(f"there is no model file {path}.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SetupError(f"{path} is not a GGUF model file; pull or import it again.")
        self.path = path
        self._library = library()
        self.c = self._library.c
        params = self.c.llama_model_default_params()
        params.n_gpu_layers = 0
        params.check_tensors = False
        self.handle = self.c.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            why = next(
                (text for text in self._library.complaints if "error" in text), "it is damaged"
            )
            raise SetupError(f"{path} cannot be loaded: {why}; pull or import the model again.")
        self.vocab = self.c.llama_model_get_vocab(self.handle)
        self.tokens: int = self.c.llama_vocab_n_tokens(self.vocab)
        self.trained_window: int = self.c.llama_model_n_ctx_train(self.handle)
        self.eos: int = self.c.llama_vocab_eos(self.vocab)
        self._refuse_what_cannot_be_exact()

    def _refuse_what_cannot_be_exact(self) -> None:
        for kind, found in (
            ("keeps a recurrent state", self.c.llama_model_is_recurrent(self.handle)),
            ("keeps a recurrent state", self.c.llama_model_is_hybrid(self.handle)),
            ("has an encoder", self.c.llama_model_has_encoder(self.handle)),
            ("attends through a sliding window", self.c.llama_model_n_swa(self.handle) > 0),
        ):
            if found:
                raise SetupError(
                    f"{self.path.name} {kind}, which the embedded core cannot suspend exactly; "
                    "choose a plain transformer, such as smollm2-135m, or see whether a "
                    "transformers core runs it (`aios core add`)."
                )

    @cached_property
    def chat_template(self) -> str | None:
        """The file's own Jinja template."""
        text = self.c.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else None

    @cached_property
    def bos_text(self) -> str:
        bos = self.c.llama_vocab_bos(self.vocab)
        return self.piece(bos, special=True).decode("utf-8", "replace") if bos >= 0 else ""

    @cached_property
    def eos_text(self) -> str:
        return self.piece(self.eos, special=True).decode("utf-8", "replace")

    @cached_property
    def adds_bos(self) -> bool:
        return bool(self.c.llama_vocab_get_add_bos(self.vocab))

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """How the control tokens are spelt, longest first."""
        control = (t for t in range(self.tokens) if self.is_control(t))
        texts = {self.piece(t, special=True).decode("utf-8", "replace") for t in control}
        return tuple(sorted(texts - {""}, key=len, reverse=True))

    def is_control(self, token: int) -> bool:
        return bool(self.c.llama_vocab_get_attr(self.vocab, token) & CONTROL)

    def is_end(self, token: int) -> bool:
        """Does this token end an answer?"""
        return bool(self.c.llama_vocab_is_eog(self.vocab, token))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; a control token has some only if *special*."""
        buffer = c.create_string_buffer(256)
        length = self.c.llama_token_to_piece(self.vocab, token, buffer, 256, 0, special)
        if length < 0:
            buffer = c.create_string_buffer(-length)
            length = self.c.llama_token_to_piece(self.vocab, token, buffer, -length, 0, special)
        return buffer.raw[:length]

    def tokenize(self, text: str, *, add_bos: bool, special: bool = True) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        found = np.empty(room, np.int32)
        count = self.c.llama_tokenize(
            self.vocab, data, len(data), found.ctypes.data, room, add_bos, special
        )
        return [int(token) for token in found[:count]]

    def close(self) -> None:
        self.c.llama_model_free(self.handle)


class Context:
    """One llama_context with unified cells: decode a batch, read logits, move KV states.

    Sequence ids are 0 to OUTPUTS-1. A batch is at most BATCH tokens and is computed as one.
    """

    def __init__(self, model: Model, cells: int, threads: int) -> None:
        self.model, self.threads = model, threads
        self._c = model.c
        params = self._c.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_seq_max = params.n_outputs_max = OUTPUTS
        params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        params.kv_unified = params.swa_full = params.no_perf = True
        self.handle = self._c.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise SetupError(
                f"{model.path.name} leaves no memory for {cells} cells; lower core.cells."
            )
        self._memory = self._c.llama_get_memory(self.handle)
        self._single_threads = threads
        self._tokens = np.zeros(BATCH, np.int32)
        self._positions = np.zeros(BATCH, np.int32)
        self._ones = np.ones(BATCH, np.int32)
        self._ids = np.zeros(BATCH, np.int32)
        self._wanted = np.zeros(BATCH, np.int8)
        first = self._ids.ctypes.data
        self._id_pointers = np.array([first + 4 * i for i in range(BATCH)], np.uint64)
        self._batch = _Batch(
            0,
            self._tokens.ctypes.data,
            None,
            self._positions.ctypes.data,
            self._ones.ctypes.data,
            self._id_pointers.ctypes.data,
            self._wanted.ctypes.data,
        )

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        ids: Sequence[int] | int,
        wanted: Sequence[int],
    ) -> None:
        """Compute a batch; *wanted* are the rows whose logits will be read."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._ids[:count] = ids
        self._wanted[:count] = 0
        self._wanted[list(wanted)] = 1
        self._batch.n_tokens = count
        status = self._c.llama_decode(self.handle, self._batch)
        if status != 0:
            raise CoreFailed(f"llama_decode answered {status} to a batch of {count} tokens.")

    def logits(self, row: int) -> NDArray[np.float32]:
        """The logits of a wanted row, shape (vocabulary,); a view, valid until the next decode."""
        address = self._c.llama_get_logits_ith(self.handle, row)
        if not address:
            raise CoreFailed(f"row {row} of the batch has no logits.")
        row_of_logits = (_f32 * self.model.tokens).from_address(address)
        return np.ctypeslib.as_array(row_of_logits)

    def set_single_threads(self, threads: int) -> None:
        """How many threads compute a batch of one token."""
        if threads != self._single_threads:
            self._single_threads = threads
            self._c.llama_set_n_threads(self.handle, threads, self.threads)

    def forget(self, seq: int, start: int = 0, end: int = -1) -> None:
        """Take a sequence's mark off the cells of its positions [start, end)."""
        self._c.llama_memory_seq_rm(self._memory, seq, start, end)

    def share(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Mark the cells of source's positions [start, end) as target's too; copies nothing."""
        self._c.llama_memory_seq_cp(self._memory, source, target, start, end)

    def length(self, seq: int) -> int:
        return int(self._c.llama_memory_seq_pos_max(self._memory, seq)) + 1

    def clear(self) -> None:
        self._c.llama_memory_clear(self._memory, True)

    def state(self, seq: int) -> NDArray[np.uint8]:
        """The KV state of a sequence's cells, in the order of the cells."""
        size = self._c.llama_state_seq_get_size(self.handle, seq)
        data = np.empty(size, np.uint8)
        if self._c.llama_state_seq_get_data(self.handle, data.ctypes.data, size, seq) != size:
            raise CoreFailed(f"the state of sequence {seq} is not {size} bytes long, as announced.")
        return data

    def set_state(self, seq: int, data: NDArray[np.uint8]) -> bool:
        """Give a sequence a state, in the lowest empty cells; False if the library refuses it."""
        size = data.size
        return bool(
            self._c.llama_state_seq_set_data(self.handle, data.ctypes.data, size, seq) == size
        )

    def close(self) -> None:
        self._c.llama_free(self.handle)


def vocabulary(model: Model) -> llguidance.LLTokenizer:
    """A model's tokens, as grammars need them."""
    pieces = []
    for token in range(model.tokens):
        piece = model.piece(token, special=True)
        pieces.append(b"\xff" + piece if model.is_control(token) else piece)
    return llguidance.LLTokenizer.from_llamacpp(
        tokens=pieces,
        vocab_ptr=model.vocab,
        tokenize_fptr=c.cast(model.c.llama_tokenize, c.c_void_p).value,
        eos_token=model.eos,
        slices=None,
    )
