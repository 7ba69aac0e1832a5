"""OpenVINO as a contender of `edgeqat bench`: a stateful Llama with random int4 weights (groups of
64, the head too), laid out as its own exporters do, so that its fusions apply.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeqat.bench.sequence import Steps
from edgeqat.runtime.shape import Shape

KV_TYPES = ("u8", "u4")
GROUP = 64
_SCALE = 4e-3
_EPSILON = 1e-5
_THETA = 10000.0


class OpenVINO(Steps):
    """Random int4 weights of a shape on OpenVINO's CPU plugin; kv is one of KV_TYPES."""

    position = 0

    def __init__(self, shape: Shape, threads: int, kv: str) -> None:
        import openvino as ov

        self._maker = _Maker(shape)  # owns the weights, which the compiled model reads in place
        model = self._maker.model()
        self.isa = "openvino"
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # bf16 has no int8 products without AMX
            "KEY_CACHE_PRECISION": kv,
            "VALUE_CACHE_PRECISION": kv,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        }
        self._request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
        self.vocabulary = shape.vocabulary
        self.embedding_bytes = shape.vocabulary * (shape.hidden + 2)  # u8, a scale a row

    def seek(self, depth: int) -> None:
        """Make the sequence `depth` tokens long; its state cannot be cut, so it starts again."""
        if depth != self.position:
            self._request.reset_state()
            self.position = 0
            self.prefill(depth)

    def append(self, ids: list[int]) -> None:
        positions = np.arange(self.position, self.position + len(ids), dtype=np.int64)[None]
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "position_ids": positions,
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer(inputs, share_inputs=True)
        self.position += len(ids)


class _Maker:
    """Builds the graph. Legend: B batch (1), N tokens, H heads, K key/value heads, D head_dim."""

    def __init__(self, shape: Shape) -> None:
        import openvino as ov
        from openvino import opset13

        self.ov, self.op, self.shape = ov, opset13, shape
        self.random = np.random.default_rng(0)
        self.weights: list[Any] = []

    def model(self) -> Any:
        op, shape = self.op, self.shape
        ids = op.parameter([-1, -1], np.int64, name="input_ids")
        positions = op.parameter([-1, -1], np.int64, name="position_ids")
        beams = op.parameter([-1], np.int32, name="beam_idx")
        inputs = {"input_ids": ids, "position_ids": positions, "beam_idx": beams}
        for name, node in inputs.items():
            node.output(0).tensor.set_names({name})
        self.batch = op.gather(op.shape_of(ids), self.integers(0), self.integers(0))
        self.beams = beams
        x = op.gather(self.embedding(), op.convert(ids, "i32"), self.integers(0))
        turns = self.angles(positions)
        sinks: list[Any] = []
        for layer in range(shape.layers):
            x = op.add(x, self.attention(self.norm(x), turns, layer, sinks))
            normed = self.norm(x)
            gate = op.swish(self.linear(normed, shape.ffn, shape.hidden))
            up = self.linear(normed, shape.ffn, shape.hidden)
            x = op.add(x, self.linear(op.multiply(gate, up), shape.hidden, shape.ffn))
        last = op.gather(self.norm(x), self.integers([-1]), self.integers(1))
        logits = op.result(self.linear(last, shape.vocabulary, shape.hidden))
        return self.ov.Model([logits], sinks, list(inputs.values()), "llama")

    def integers(self, value: Any) -> Any:
        return self.op.constant(np.array(value, np.int64))

    def floats(self, value: Any) -> Any:
        return self.op.constant(np.array(value, np.float32))

    def norm(self, x: Any) -> Any:
        op = self.op
        mean = op.reduce_mean(op.power(x, self.floats(2)), self.integers([-1]), keep_dims=True)
        root = op.sqrt(op.add(mean, self.floats(_EPSILON)))
        scaled = op.multiply(x, op.divide(self.floats(1), root))
        return op.multiply(self.floats(np.ones((1, 1, self.shape.hidden))), scaled)

    def packed(self, rows: int, columns: int, kind: str, group: int) -> Any:
        """(rows, columns) float32 from random codes with one fp16 scale per `group` inputs."""
        op, groups = self.op, columns // group
        bits = 4 if kind == "u4" else 8
        codes = np.frombuffer(self.random.bytes(rows * columns * bits // 8), np.uint8).copy()
        zero = np.array([2 ** (bits - 1)], np.uint8)
        self.weights += [codes, zero]
        packed = self.ov.Tensor(codes, [rows, groups, group], getattr(self.ov.Type, kind))
        middle = self.ov.Tensor(zero, [1, 1, 1], packed.element_type)
        centred = op.subtract(*(op.convert(op.constant(x), "f16") for x in (packed, middle)))
        scale = np.full((rows, groups, 1), _SCALE * 2.0 ** (4 - bits), np.float16)
        scaled = op.multiply(centred, op.constant(scale))
        flat = op.reshape(scaled, self.integers([rows, columns]), False)
        return op.convert(flat, "f32")

    def embedding(self) -> Any:
        return self.packed(self.shape.vocabulary, self.shape.hidden, "u8", self.shape.hidden)

    def linear(self, x: Any, rows: int, columns: int) -> Any:
        weight = self.packed(rows, columns, "u4", GROUP)
        return self.op.matmul(x, weight, False, True)

    def angles(self, positions: Any) -> tuple[Any, Any]:
        """Cosines and sines (B, 1, N, D)."""
        op, dim = self.op, self.shape.head_dim
        frequency = _THETA ** (-np.arange(0, dim, 2, dtype=np.float32) / dim)
        column = op.convert(op.unsqueeze(positions, self.integers(1)), "f32")  # (B, 1, N)
        product = op.matmul(self.floats(frequency[None, :, None]), column, False, False)
        half = op.transpose(product, self.integers([0, 2, 1]))
        both = op.concat([half, half], -1)
        one = self.integers(1)
        return op.unsqueeze(op.cos(both), one), op.unsqueeze(op.sin(both), one)

    def turn(self, x: Any, turns: tuple[Any, Any]) -> Any:
        op, half = self.op, self.shape.head_dim // 2
        split = op.variadic_split(x, self.integers(3), self.integers([half, half]))
        negative = op.multiply(split.output(1), self.floats([[[[-1.0]]]]))
        other = op.concat([negative, split.output(0)], -1)
        return op.add(op.multiply(x, turns[0]), op.multiply(other, turns[1]))

    def heads(self, x: Any, count: int) -> Any:
        """(B, N, count * D) to (B, count, N, D)."""
        split = self.op.reshape(x, self.integers([0, 0, count, self.shape.head_dim]), True)
        return self.op.transpose(split, self.integers([0, 2, 1, 3]))

    def attention(self, x: Any, turns: tuple[Any, Any], layer: int, sinks: list[Any]) -> Any:
        op, shape = self.op, self.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        query = self.turn(self.heads(self.linear(x, queries, shape.hidden), shape.heads), turns)
        key = self.turn(self.heads(self.linear(x, keys, shape.hidden), shape.kv_heads), turns)
        value = self.heads(self.linear(x, keys, shape.hidden), shape.kv_heads)
        key = self.cached(f"key.{layer}", key, sinks)
        value = self.cached(f"value.{layer}", value, sinks)
        mixed = op.scaled_dot_product_attention(query, key, value, causal=True)
        merged = op.transpose(mixed, self.integers([0, 2, 1, 3]))
        flat = op.reshape(merged, self.integers([0, 0, queries]), True)
        return self.linear(flat, shape.hidden, queries)

    def cached(self, name: str, new: Any, sinks: list[Any]) -> Any:
        """All keys or values so far (B, H, N, D), those of a group of heads repeated."""
        op, shape = self.op, self.shape
        size = [shape.kv_heads, 0, shape.head_dim]
        dims = [op.unsqueeze(self.batch, self.integers(0)), *(self.integers([s]) for s in size)]
        empty = op.broadcast(self.floats(0), op.concat(dims, 0))
        info = self.ov.op.util.VariableInfo()
        info.data_shape = self.ov.PartialShape([-1, shape.kv_heads, -1, shape.head_dim])
        info.data_type, info.variable_id = self.ov.Type.f32, name
        variable = self.ov.op.util.Variable(info)
        past = op.gather(self.ov.op.read_value(empty, variable), self.beams, self.integers(0))
        every = op.concat([past, new], 2)
        sinks.append(self.ov.op.assign(every, variable))
        group = shape.heads // shape.kv_heads
        if group == 1:
            return every
        wide = op.unsqueeze(every, self.integers(2))
        repeated = op.broadcast(
            wide, self.integers([1, 1, group, 1, 1]), broadcast_spec="BIDIRECTIONAL"
        )
        last = [0, shape.heads, -1, shape.head_dim]
        return op.reshape(repeated, self.integers(last), True)
