"""Reading GGUF files that may be anything, and requantising them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios.errors import InvalidCall, NotFound
from aios.models import gguf_file
from aios.models.requantise import requantise


def write_model(
    path: Path,
    seed: int = 0,
    alignment: int = 32,
    parts: int = 1,
    architecture: str = "llama",
    window: int = 0,
) -> Path:
    """A small llama-shaped file: Q4_1, Q8_0 and F32 tensors, arrays and strings."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    if window:
        writer.add_sliding_window(window)
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_context_length(512)
    writer.add_token_list(["a", "ä", "ab"])
    writer.add_array("scores", [0.5, 1.5])
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    for name, kind in (("one", "Q4_1"), ("two", "Q8_0"), ("three", "Q4_1")):
        quantised = gguf.GGMLQuantizationType[kind]
        values = rng.standard_normal((3, 64)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    writer.add_tensor("four", rng.standard_normal(5).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewrite_with_the_library(source: Path, target: Path) -> None:
    """What requantise must give, said with the gguf package's own reader and writer."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, kept in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        value = kept.contents()
        if name == "general.alignment":
            writer.data_alignment = value
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q4_0)
        element = kept.types[-1] if kept.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kept.types[0], sub_type=element)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == gguf.GGMLQuantizationType.Q4_1:
            values = gguf.quants.dequantize(data, kind)
            kind = gguf.GGMLQuantizationType.Q4_0
            data = gguf.quants.quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_is_in_a_file(tmp_path: Path) -> None:
    model = gguf_file.read(write_model(tmp_path / "m.gguf"))
    assert (model.architecture, model.context, model.files) == ("llama", 512, 1)
    assert model.fields["general.license"] == "mit"
    theirs = gguf.GGUFReader(model.path).tensors
    assert [(t.name, t.kind, t.start, t.bytes) for t in model.tensors] == [
        (t.name, t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs
    ]


def test_every_type_has_the_size_that_the_library_gives_it() -> None:
    theirs = {
        int(kind): (kind.name, *sizes)
        for kind, sizes in gguf.GGML_QUANT_SIZES.items()
        if kind not in (36, 37, 38)
    }
    assert theirs == gguf_file.TENSOR_TYPES


@pytest.mark.parametrize("alignment", [32, 64])
def test_requantising_gives_what_the_library_gives(tmp_path: Path, alignment: int) -> None:
    source = write_model(tmp_path / "in.gguf", alignment=alignment)
    rewrite_with_the_library(source, tmp_path / "theirs.gguf")
    seen: list[tuple[int, int]] = []
    requantise(source, tmp_path / "ours.gguf", lambda *at: seen.append(at))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    ours = gguf_file.read(tmp_path / "ours.gguf")
    assert [t.kind for t in ours.tensors] == ["Q4_0", "Q8_0", "Q4_0", "F32"]
    assert seen[-1][0] == seen[-1][1] == sum(t.bytes for t in gguf_file.read(source).tensors)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        gguf_file.read(tmp_path / "nothing.gguf")
    with pytest.raises(InvalidCall, match="cannot be read: Is a directory"):
        gguf_file.read(tmp_path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: b"", "does not begin with the letters GGUF"),
        (lambda data: b"PK\x03\x04" + data[4:], "does not begin with the letters GGUF"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "its version is 1"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "it claims 18,446,744,073,709"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "it claims 18,446,744,073,709"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "it claims 18,446,744,073,709"),
        (lambda data: data[:100], "it ends in the middle of"),
        (lambda data: data[:-40], "but the tensor four ends at byte"),
        (lambda data: data.replace(b"general.name", b"general.\xff\xff\xff\xff"), "is not text"),
        (lambda data: data.replace(b"tiny", b"tin"), "GGUF"),
    ],
)
def test_damage_is_told_in_a_sentence(tmp_path: Path, damage: object, sentence: str) -> None:
    assert callable(damage)
    file = write_model(tmp_path / "m.gguf")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InvalidCall, match=sentence) as refused:
        gguf_file.read(file)
    assert "m.gguf" in refused.value.message
    assert "\n" not in refused.value.message


@given(st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed anywhere before the weights, and an end anywhere."""
    file = tmp_path / "m.gguf"
    content = bytearray((_whole(tmp_path)).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        model = gguf_file.read(file)
    except InvalidCall:
        return
    assert all(tensor.start + tensor.bytes <= model.bytes for tensor in model.tensors)
    assert model.context >= 0
    assert model.files >= 0


def _whole(tmp_path: Path) -> Path:
    whole = tmp_path / "whole.gguf"
    return whole if whole.exists() else write_model(whole)
