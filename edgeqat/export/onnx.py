"""ONNX: packed image classifiers as quantize-dequantize graphs (opset 17).

    weight:     codes int8, DequantizeLinear with one scale a channel
    activation: QuantizeLinear, DequantizeLinear

2- to 6-bit codes travel in int8; half-step ones as 2 c + 1 with half the scale. A batch norm behind
a convolution becomes its scale and bias (codes change their sign where gamma < 0).

Activations are x = s c + beta. A pair of nodes holds beta where -beta / s is an integer of 8 bits;
else additions around the pair keep it exactly, and the product is one of floats. Requantized, a
graph of 8-bit activations has -beta / s and its biases rounded, and runtimes compute in integers.

The graph is read off the model with torch.fx; what the rules below do not know is refused by name.
Not here: running it (bench/onnx_runtime). Legend: O output channels, I input channels.
"""

from __future__ import annotations

import operator
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edgeqat import checkpoint
from edgeqat.errors import ModelError, UsageError
from edgeqat.hf import image_folder, image_model
from edgeqat.nn import folding
from edgeqat.nn.conv import PackedConv2d, geometry
from edgeqat.nn.packed import PackedLinear, PackedWeight
from edgeqat.output import whole_file
from edgeqat.quant.functional import STATIC_MIN_SCALE
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.scheme import Grid
from edgeqat.vision.activation import ReLU6

OPSET, IR_VERSION = 17, 9
INPUT, OUTPUT = "images", "logits"
_INT8, _PAIR_BITS = (-128, 127), 8
_SAME = 1e-4  # steps of a grid that float32 cannot tell apart
_FUNCTIONS = {
    operator.add: "Add", torch.add: "Add", operator.mul: "Mul", torch.mul: "Mul",
    torch.relu: "Relu", F.relu: "Relu", torch.sigmoid: "Sigmoid", F.relu6: "Clip", F.silu: "SiLU",
}  # fmt: skip
_METHODS = {"add": "Add", "mul": "Mul", "relu": "Relu", "sigmoid": "Sigmoid"}
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "Relu", nn.ReLU6: "Clip", ReLU6: "Clip", nn.SiLU: "SiLU", nn.Sigmoid: "Sigmoid",
    nn.Dropout: "Identity", nn.Identity: "Identity", nn.MaxPool2d: "MaxPool",
    nn.Flatten: "Flatten", nn.AdaptiveAvgPool2d: "GlobalAveragePool",
}  # fmt: skip


def check_installed() -> None:
    """Refuse to start without the optional package."""
    if find_spec("onnx") is None:
        raise UsageError("onnx: it is not installed; pip install 'edgeqat[export]'")


def export_folder(folder: Path, path: Path, requantize: bool = False) -> list[str]:
    """Write the packed image classifier of a folder to an .onnx file; returns lines about it.

    Raises an EdgeQATError in one line.
    """
    config = checkpoint.verify(folder)
    if not image_folder.is_image_folder(config):
        raise UsageError(
            f"folder: '{folder}' holds a language model, ONNX files are for image classifiers; "
            "serve it with `edgeqat generate`"
        )
    kind = image_model.from_config(config)
    scheme = config["quantization_config"]["scheme"]
    metadata = {
        "scheme": scheme,
        "mean": " ".join(map(str, kind.mean)),
        "deviation": " ".join(map(str, kind.deviation)),
        "labels": "\n".join(config[image_model.IMAGE]["labels"]),
    }
    rounded = export(image_folder.load(folder, config), kind.size, path, metadata, requantize)
    return [
        f"{scheme}: {INPUT} (batch, 3, {kind.size}, {kind.size}), (pixels / 255 - mean) / "
        f"deviation, to {OUTPUT} (batch, {kind.classes})",
        *rounded,
    ]


def export(
    model: nn.Module, size: int, path: Path, facts: dict[str, str], requantize: bool = False
) -> list[str]:
    """Write a packed classifier of images (B, 3, size, size) to an .onnx file; `facts` become its
    metadata. Returns lines that say what was rounded, or could be. Raises ModelError for a layer
    that ONNX cannot hold.
    """
    import onnx

    graph = _Graph(model.eval(), requantize)
    shape = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    made = onnx.helper.make_graph(
        graph.nodes,
        type(model).__name__,
        [shape(INPUT, kind, ["batch", 3, size, size])],
        [shape(OUTPUT, kind, ["batch", graph.classes])],
        [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    whole = onnx.helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)
    onnx.helper.set_model_props(whole, facts)
    onnx.checker.check_model(whole)
    with whole_file(path) as temporary:
        temporary.write_bytes(whole.SerializeToString())
    return graph.words()


class _Graph:
    """Nodes and constants of a model, one fx node after the other."""

    def __init__(self, model: nn.Module, requantize: bool) -> None:
        self.model, self.classes, self._requantize = model, 0, requantize
        self._shifts: list[float] = []  # of zero points that are no integers, in steps
        self._clamped = 0  # weights that lost a level
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[fx.Node, str] = {}
        static = [m for m in model.modules() if isinstance(m, StaticQuantizer)]
        self._in_integers = all(quantizer.grid.bits == _PAIR_BITS for quantizer in static)
        self._quantized: dict[tuple[str, float, float], str] = {}
        try:
            traced = folding.trace(model)
        except (fx.proxy.TraceError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ModelError(
                f"onnx: the forward pass of {type(model).__name__} cannot be traced ({reason}); "
                "export a classifier of edgeqat train's architectures"
            ) from None
        norms = folding.norms(model, traced)
        for node in traced.nodes:
            if node in norms.values():
                before: Any = node.args[0]
                self._names[node] = self._names[before]
            else:
                self._names[node] = self._emit(node, norms.get(node))

    def words(self) -> list[str]:
        """What was rounded, or could be for speed, one line each."""
        if self._quantized and self._in_integers and not self._requantize:
            return [
                "offsets of activations and biases are exact, so that runtimes compute in float32; "
                "--requantize rounds them, for integers"
            ]
        lines = []
        if self._shifts:
            lines.append(
                f"{len(self._shifts)} of {len(self._quantized)} activation quantizers have rounded "
                f"zero points: values move by up to {max(self._shifts):.2f} steps, "
                f"{statistics.mean(self._shifts):.2f} on average"
            )
        if self._clamped:
            lines.append(f"{self._clamped} weights of level 128 became 127, the largest of int8")
        return lines

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns the name of its output."""
        import onnx

        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """An initializer; returns its name."""
        name = f"constant_{len(self.constants)}"
        array = values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
        self.constants[name] = array.astype(dtype)
        return name

    def _emit(self, node: fx.Node, norm: fx.Node | None) -> str:
        if node.op == "placeholder":
            return INPUT
        if node.op == "output":
            self.nodes[-1].output[0] = OUTPUT
            return OUTPUT
        inputs = [self._names[one] for one in node.args if isinstance(one, fx.Node)]
        if node.op == "call_module":
            return self._emit_module(self._module(node), inputs[0], norm, str(node.target))
        target: Any = node.target
        if target in (torch.mean, "mean"):
            axes, keep = _arguments(node, "dim"), _arguments(node, "keepdim")
            return self.add("ReduceMean", *inputs, axes=list(axes), keepdims=int(bool(keep)))
        if target in (torch.flatten, "flatten"):
            return self.add("Flatten", *inputs, axis=1)
        kind = _METHODS.get(target) if node.op == "call_method" else _FUNCTIONS.get(target)
        if kind is None or len(inputs) != len([a for a in node.args if a is not None]):
            raise ModelError(
                f"onnx: '{getattr(target, '__name__', target)}' in the forward pass of "
                f"{type(self.model).__name__} is not supported; export another architecture"
            )
        return self._simple(kind, *inputs)

    def _emit_module(self, module: Any, input: str, norm: fx.Node | None, name: str) -> str:
        if isinstance(module, (PackedConv2d, nn.Conv2d)):
            return self._convolution(module, input, self._module(norm) if norm else None)
        if isinstance(module, (PackedLinear, nn.Linear)):
            return self._linear(module, input, name)
        if isinstance(module, nn.BatchNorm2d):
            gain, bias = _affine(module)
            shape = (-1, 1, 1)
            scaled = self.add("Mul", input, self.constant(gain.reshape(shape)))
            return self.add("Add", scaled, self.constant(bias.reshape(shape)))
        kind = _MODULES.get(type(module))
        if kind == "MaxPool":
            sides = {"kernel_shape": module.kernel_size, "strides": module.stride}
            values = {key: [side, side] for key, side in sides.items() if isinstance(side, int)}
            if len(values) == 2 and isinstance(module.padding, int) and not module.ceil_mode:
                return self.add("MaxPool", input, pads=[module.padding] * 4, **values)
            kind = None
        if kind == "GlobalAveragePool" and module.output_size not in (1, (1, 1)):
            kind = None
        if kind is None:
            raise ModelError(
                f"onnx: layer '{name}' ({type(module).__name__}) is not supported; export another "
                "architecture"
            )
        return self._simple(kind, input)

    def _simple(self, kind: str, *inputs: str) -> str:
        if kind == "Clip":
            return self.add("Clip", *inputs, self.constant(0.0), self.constant(6.0))
        if kind == "SiLU":
            return self.add("Mul", *inputs, self.add("Sigmoid", *inputs))
        if kind == "Identity":
            return inputs[0]
        return self.add(kind, *inputs)

    def _convolution(self, layer: Any, input: str, norm: nn.BatchNorm2d | None) -> str:
        gain, bias = (None, layer.bias) if norm is None else _affine(norm)
        if norm is not None and layer.bias is not None:
            bias = bias + gain * layer.bias
        convolution = layer.spec.convolution if isinstance(layer, PackedConv2d) else geometry(layer)
        options: dict[str, Any] = convolution or {}
        kernel = options["kernel_size"]
        input, step = self._activation(layer, input)
        weight, scale = self._weight(layer, gain, (-1, *kernel))
        inputs = [input, weight]
        if bias is not None:
            inputs.append(self._bias(bias, scale, step))
        return self.add(
            "Conv",
            *inputs,
            kernel_shape=list(kernel),
            strides=list(options["stride"]),
            pads=list(options["padding"]) * 2,
            dilations=list(options["dilation"]),
            group=options["groups"],
        )

    def _linear(self, layer: Any, input: str, name: str) -> str:
        if isinstance(layer, PackedLinear) and (layer.spec.rotation or layer.spec.group_size):
            raise ModelError(
                f"onnx: layer '{name}' has a rotated input or groups, which ONNX cannot hold; "
                "train with quant.activation.rotate=[] and quant.weight.granularity=per_channel"
            )
        input, step = self._activation(layer, input)
        weight, scale = self._weight(layer, None, None)
        inputs = [input, weight]
        if layer.bias is not None:
            inputs.append(self._bias(layer.bias, scale, step))
        self.classes = int(layer.weight.shape[0])
        if isinstance(layer, PackedLinear):
            self.classes = layer.spec.shape[0]
        return self.add("Gemm", *inputs, transB=1)

    def _weight(
        self, layer: Any, gain: Tensor | None, kernel: tuple[int, ...] | None
    ) -> tuple[str, Tensor | None]:
        """The (dequantized) weight times a gain (O,) per row, and its scale (O,) if it has one."""
        if not isinstance(layer, PackedWeight):
            weight = layer.weight.detach()
            if gain is not None:
                weight = weight * gain.view(-1, 1, 1, 1)
            return self.constant(weight), None
        codes, scale = layer.codes().int(), layer.scale()[:, 0]
        if layer.grid.half_step:
            codes, scale = 2 * codes + 1, scale / 2
        mirrored = None
        if gain is not None:
            scale = scale * gain
            codes, mirrored = self._turned(codes, scale < 0)
            scale = scale.abs().clamp(min=torch.finfo(torch.float32).tiny)
        codes = codes.unflatten(1, kernel) if kernel else codes
        values = self.constant(codes, np.int8)
        zero = self.constant(np.zeros(len(scale)), np.int8)
        weight = self.add("DequantizeLinear", values, self.constant(scale), zero, axis=0)
        if mirrored is None:
            return weight, scale
        signs = torch.where(mirrored, -1.0, 1.0).view(-1, 1, 1, 1)
        return self.add("Mul", weight, self.constant(signs)), None

    def _turned(self, codes: Tensor, negative: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (O, I) with the sign of `negative` rows (O,) changed, and the rows that stay as
        they are because int8 does not hold the 128 of a -128; requantized, that becomes 127.
        """
        turned = torch.where(negative[:, None], -codes, codes)
        over = turned > _INT8[1]
        if not over.any():
            return turned, None
        if self._requantize:
            self._clamped += int(over.sum())
            return turned.clamp(*_INT8), None
        rows = over.any(dim=1)
        return torch.where(rows[:, None], codes, turned), rows

    def _bias(self, bias: Tensor, scale: Tensor | None, step: float | None) -> str:
        """A bias (O,): requantized in int32 where input and weight are quantized, which lets a
        runtime compute in integers; exact to half an accumulator unit.
        """
        if scale is None or step is None or not self._requantize:
            return self.constant(bias)
        unit = scale.double() * step
        codes = (bias.detach().double() / unit).round()
        if codes.abs().max() >= 2**31:
            return self.constant(bias)
        zero = self.constant(np.zeros(len(scale)), np.int32)
        values = self.constant(codes, np.int32)
        return self.add("DequantizeLinear", values, self.constant(unit), zero, axis=0)

    def _activation(self, layer: Any, input: str) -> tuple[str, float | None]:
        """The quantized input of a layer, and its scale where it is a plain pair of nodes."""
        quantizer = getattr(layer, "input_quantizer", None)
        if quantizer is None or isinstance(quantizer, nn.Identity):
            return input, None
        if type(quantizer) is not StaticQuantizer:
            raise ModelError(
                "onnx: activations with a scale for each token cannot be held; train with "
                "quant.activation.mode=static"
            )
        scale = float(quantizer.scale.detach().clamp(min=STATIC_MIN_SCALE))
        beta = float(quantizer.beta.detach())
        zero = round(-beta / scale)
        key = (input, scale, beta)
        shift = abs(zero + beta / scale)
        fits = self._in_integers and _INT8[0] <= zero <= _INT8[1]
        plain = fits and (self._requantize or shift < _SAME)
        if key not in self._quantized:
            if plain and shift >= _SAME:
                self._shifts.append(shift)
            self._quantized[key] = (
                self._pair(input, scale, zero)
                if plain
                else self._exact(input, scale, beta, quantizer.grid)
            )
        return self._quantized[key], scale if plain else None

    def _pair(self, input: str, scale: float, zero: int) -> str:
        ends = (self.constant(scale), self.constant(zero, np.int8))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", input, *ends), *ends)

    def _exact(self, input: str, scale: float, beta: float, grid: Grid) -> str:
        offset = self.constant(beta + grid.offset * scale)
        moved = self.add("Sub", input, offset)
        if grid.bits < _PAIR_BITS:  # else the pair clips
            ends = (self.constant(grid.qmin * scale), self.constant(grid.qmax * scale))
            moved = self.add("Clip", moved, *ends)
        return self.add("Add", self._pair(moved, scale, 0), offset)

    def _module(self, node: fx.Node) -> Any:
        return self.model.get_submodule(str(node.target))


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and bias (O,) of a batch norm in eval mode."""
    assert norm.running_var is not None and norm.running_mean is not None
    gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return gain, norm.bias.detach() - norm.running_mean * gain


def _arguments(node: fx.Node, name: str) -> Any:
    """The dims or keepdim of a mean."""
    place = {"dim": 1, "keepdim": 2}[name]
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
