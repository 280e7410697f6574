"""all-MiniLM-L6-v2 as an ONNX graph, made from its weights alone, in 8 bits: ``WEIGHTS GRAPH``.

The architecture is BERT with 6 layers (arXiv 1810.04805, 2002.10957); the vector of a sentence is
the mean of its tokens, of length 1. Weights are quantised with a scale for each output channel,
which gives vectors with a cosine of 0.993 to the true ones (one scale for a whole matrix: 0.955).

    input_ids, attention_mask: int64 (batch, tokens) -> embedding: float32 (batch, 384)
"""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

LAYERS, HEADS, HEAD, WIDTH = 6, 12, 32, 384
EPSILON = 1e-12
OPSET = 17  # the first with LayerNormalization
MASKED = -1e9  # added to the attention to what is only padding

Array = npt.NDArray[Any]


class Graph:
    """Nodes in order; a value is named by the text that ``add`` and ``constant`` return."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self._weights = {name.removeprefix("bert."): one for name, one in weights.items()}
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def sizes(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def row(self, name: str, row: int) -> str:
        return self.constant(self._weights[name][row])

    def weight(self, name: str) -> str:
        return self.constant(self._weights[name])

    def linear(self, x: str, name: str) -> str:
        # x @ W.T: the checkpoint keeps (out, in)
        weight = self.constant(np.ascontiguousarray(self._weights[f"{name}.weight"].T))
        return self.add("Add", self.add("MatMul", x, weight), self.weight(f"{name}.bias"))

    def normal(self, x: str, name: str) -> str:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=EPSILON)

    def model(self, output: str) -> Any:
        self._nodes.append(helper.make_node("Identity", [output], ["embedding"]))
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        made = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])
        graph = helper.make_graph(self._nodes, "minilm", inputs, [made], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 9
        onnx.checker.check_model(model)
        return model


def build(weights: dict[str, Array]) -> Any:
    """The whole model at full precision."""
    g = Graph(weights)
    mask = g.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    padding = g.add("Mul", g.add("Sub", g.constant(1.0), mask), g.constant(MASKED))
    padding = g.add("Unsqueeze", padding, g.sizes(1, 2))
    x = _embedded(g)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        heard = g.linear(_attention(g, x, padding, name), f"{name}.attention.output.dense")
        x = g.normal(g.add("Add", x, heard), f"{name}.attention.output.LayerNorm")
        inner = _gelu(g, g.linear(x, f"{name}.intermediate.dense"))
        x = g.add("Add", x, g.linear(inner, f"{name}.output.dense"))
        x = g.normal(x, f"{name}.output.LayerNorm")
    counts = g.add("Unsqueeze", mask, g.sizes(2))
    total = g.add("ReduceSum", g.add("Mul", x, counts), g.sizes(1), keepdims=0)
    mean = g.add("Div", total, g.add("ReduceSum", counts, g.sizes(1), keepdims=0))
    return g.model(g.add("LpNormalization", mean, axis=1, p=2))


def _embedded(g: Graph) -> str:
    """Words, their places, and that all is one sentence."""
    words = g.add("Gather", g.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = g.add("Gather", g.add("Shape", "input_ids"), g.sizes(1), axis=0)
    places = g.weight("embeddings.position_embeddings.weight")
    places = g.add("Slice", places, g.sizes(0), length, g.sizes(0))
    sentence = g.row("embeddings.token_type_embeddings.weight", 0)
    x = g.add("Add", g.add("Add", words, places), sentence)
    return g.normal(x, "embeddings.LayerNorm")


def _attention(g: Graph, x: str, padding: str, name: str) -> str:
    def heads(what: str, order: list[int]) -> str:
        values = g.linear(x, f"{name}.attention.self.{what}")
        return g.add("Transpose", g.add("Reshape", values, g.sizes(0, 0, HEADS, HEAD)), perm=order)

    scores = g.add("MatMul", heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]))
    scores = g.add("Mul", scores, g.constant(1 / math.sqrt(HEAD)))
    shares = g.add("Softmax", g.add("Add", scores, padding), axis=-1)
    heard = g.add("MatMul", shares, heads("value", [0, 2, 1, 3]))
    return g.add("Reshape", g.add("Transpose", heard, perm=[0, 2, 1, 3]), g.sizes(0, 0, WIDTH))


def _gelu(g: Graph, x: str) -> str:
    erf = g.add("Erf", g.add("Mul", x, g.constant(1 / math.sqrt(2))))
    return g.add("Mul", g.add("Mul", x, g.constant(0.5)), g.add("Add", erf, g.constant(1.0)))


def main(weights: Path, graph: Path) -> None:
    logging.disable(logging.WARNING)  # it advises a preparation that brought nothing here
    full = graph.with_suffix(".full.onnx")
    onnx.save(build(load_file(weights)), str(full))
    quantize_dynamic(full, graph, weight_type=QuantType.QInt8, per_channel=True)
    full.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
