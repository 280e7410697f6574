"""Models of a few thousand random numbers, as folders that transformers loads; and a rig for them.

Their tokenizer has one token a byte and three control tokens. They say nothing sensible, but they
say it through the code of the real architectures.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from aios.abi.messages import Message, Sampling
from aios.drivers.cores.transformers.engine import Engine
from aios.drivers.cores.transformers.start import load
from aios.ports import Prompt, Slice, SliceResult

CONTROL = ("<|start|>", "<|end|>", "<|pad|>")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 256 + len(CONTROL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 257,
    "bos_token_id": 256,
    "pad_token_id": 258,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": {},
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 24, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "qwen3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
}

Bits = list[tuple[int, bytes]]  # of each choice: the position and the logits


def make(folder: Path, kind: str, tokenizer: Any = None, **sizes: Any) -> Path:
    """A model of a kind in a folder."""
    config = transformers.AutoConfig.for_model(kind, **(SIZES | KINDS.get(kind, {}) | sizes))
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:  # as drawn they are so small that a model says the same to all
                weights.normal_(0, 0.25)
    model.save_pretrained(folder)
    (tokenizer or bytes_alone()).save_pretrained(folder)
    return folder


def bytes_alone() -> Any:
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(letters))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*CONTROL])
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=CONTROL[0], eos_token=CONTROL[1], pad_token=CONTROL[2]
    )
    found.chat_template = TEMPLATE
    return found


def sentence_pieces() -> Any:
    """Of the other family: spaces are written as a mark, what is not known is spelt in bytes."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab"]
    pieces = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([*CONTROL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=CONTROL[0], eos_token=CONTROL[1], pad_token=CONTROL[2]
    )


def prompt(number: int, length: int, *, new: int = 12, **fields: Any) -> Prompt:
    """A prompt of some *length* letters; those of one length share all but their end."""
    dice = random.Random(length)
    text = "".join(dice.choice("abcdefgh ") for _ in range(length))
    sampling = Sampling(
        temperature=fields.pop("temperature", 0.8),
        top_p=0.95,
        max_tokens=new,
        seed=number,
        ignore_end=True,
    )
    return Prompt((Message("user", f"{text}{number}"),), sampling, **fields)


def engine(folder: Path, **options: Any) -> Engine:
    """One thread: on cores that others use too, threads that wait for each other are slow."""
    settings: dict[str, Any] = {"slots": 8, "threads": 1, "ram_bytes": 64 << 20} | options
    found: Engine = load(source=str(folder), name="m", device="cpu", **settings)
    return found


class Rig:
    """An engine, and the bits of every choice that it makes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.bits: dict[int, Bits] = {}
        self.made: dict[int, list[int]] = {}
        self.text: dict[int, str] = {}
        engine.watch = lambda number, position, logits: self.bits.setdefault(number, []).append(
            (position, logits.tobytes())
        )

    def _note(self, done: list[Any]) -> list[tuple[int, SliceResult]]:
        for number, result in done:
            assert isinstance(result, SliceResult), result
            self.made.setdefault(number, []).extend(result.tokens)
            self.text[number] = self.text.get(number, "") + result.text
        return done

    def slice(self, number: int, tokens: int) -> SliceResult:
        self.engine.run(number, Slice(tokens))
        while True:
            for who, result in self._note(self.engine.turn()):
                if who == number:
                    return result

    def finish(self, number: int, tokens: int = 64) -> Bits:
        while self.slice(number, tokens).finish_reason is None:
            pass
        assert self.engine.check() == []
        return self.bits[number]

    def finish_all(self, numbers: list[int], tokens: int = 64) -> None:
        """All at once."""
        left = set(numbers)
        for number in numbers:
            self.engine.run(number, Slice(tokens))
        while left:
            for number, result in self._note(self.engine.turn()):
                if result.finish_reason:
                    left.discard(number)
                else:
                    self.engine.run(number, Slice(tokens))
        assert self.engine.check() == []

    def advance(self, number: int, made: int) -> None:
        """Until that many tokens are made; 0 stops inside the prompt."""
        while True:
            self.slice(number, 1)
            if len(self.made[number]) >= made:
                return

    def clear(self) -> None:
        for number in [*self.engine.residency.sequences]:
            self.engine.release(number)
        self.engine.turn()
        self.bits.clear()
        self.made.clear()
        self.text.clear()
        assert self.engine.check() == []
        assert self.engine.report().cells_used == 0
