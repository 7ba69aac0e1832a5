"""The model card of a packed folder: front matter for the hub, the honest table, how it was made,
how to load it in each runtime.
"""

from __future__ import annotations

from typing import Any

from edgeqat.evaluate.metric import metric_of
from edgeqat.export import compressed_tensors, llama
from edgeqat.hf import float_model
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS

_TEMPLATE = """---
library_name: edgeqat
base_model: {{ base }}
base_model_relation: quantized
{% if license %}license: {{ license }}
{% endif %}pipeline_tag: {{ "image-classification" if images else "text-generation" }}
tags: [edgeqat, quantization-aware-training, {{ m.scheme }}]
---
# {{ model }} at {{ m.scheme }}

{% if m.train.steps -%}
Trained with quantization in the loop by
[EdgeQAT](https://arxiv.org/abs/{{ "2507.17768" if images else "2402.10787" }}) for
{{ m.train.steps }} steps and packed as the learned integers.
{%- else -%}
Quantized without training and packed as integers.
{%- endif %}
{%- if adaptive %} Tokens have two widths: {{ adaptive }}.{% endif %} `report.html` beside this file
shows losses, {{ "sizes" if images else "attention and errors" }}; this repeats the run:

```
edgeqat quantize --recipe recipe.resolved.yaml --output {{ model }}-{{ m.scheme }}
```

| | {{ metric }} |
|---|---|
{% for name, value in rows %}| {{ name }} | {{ value }} |
{% endfor %}
{% if m.recovered is not none -%}
Recovered {{ "%.1f"|format(100 * m.recovered) }}% of what quantization without training loses
(in {{ gap }}).
{% endif -%}
{% if images -%}
Evaluated on {{ m.evaluation.images }} held-out images of {{ m.evaluation.size }} pixels a side.
{% if m.coreset is defined -%}
Trained on {{ m.coreset.size }} of {{ m.coreset.samples }} images.
{% endif -%}
{% else -%}
Evaluated on {{ m.evaluation.blocks }} blocks of {{ m.evaluation.context }} held-out tokens,
{{ "with" if m.evaluation.bos else "without" }} BOS, one pass.
{% endif %}
Size: {{ "%.2f"|format(m.bytes.total / 1e6) }} MB packed,
{{ "%.2f"|format(m.bytes.fp16 / 1e6) }} MB at fp16.
{% if images %}
## Load it
```python
import edgeqat

model = edgeqat.load("THIS_FOLDER")  # checks every file; (pixels / 255 - mean) / deviation goes in
```
{% else -%}
Average bits: activations {{ "%.2f"|format(m.average_bits.activations) }}, KV cache
{{ "%.2f"|format(m.average_bits.kv) }}.

## Load it
In transformers (the weights are refused without the first line, not loaded wrong):
```python
import edgeqat.hf
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")  # edgeqat.load() checks every file
```
On the C++ engine, from the shell (`edgeqat-run` of the C++ library does without Python):
```
edgeqat generate THIS_FOLDER --prompt "Once upon a time"
```
{% endif -%}
{% if exports %}
In other runtimes:
```
{{ exports }}
```
{% endif -%}
"""
_ONNX = "edgeqat export onnx THIS_FOLDER --output model.onnx"
_NO_LICENSE = ("", "other", "unknown")


def table(metrics: dict[str, Any]) -> list[tuple[str, float | None]]:
    """The honest rows: name and perplexity or top-1 (None: not computed)."""
    metric, steps, scheme = metric_of(metrics), metrics["train"]["steps"], metrics["scheme"]
    changed = "rotated, " if not metric.of_images and metrics.get("rotated", True) else ""
    if not metric.of_images and metrics.get("compensated"):
        changed += "errors compensated, "
    if metrics.get("norms_estimated"):
        changed = "batch norms estimated anew, "
    titles = {
        "float": "float",
        "float_same_steps": f"float, trained for the same {steps} steps",
        "ptq": f"PTQ at {scheme}, no training",
        "qat_start": f"... {changed}where QAT starts",
        "qat": f"QAT at {scheme}, packed" if steps else f"{scheme}, packed, not trained",
    }
    if metrics.get("qat_start") == metrics["ptq"]:
        del titles["qat_start"]
    rows = {name: metrics.get(name) for name in titles}
    return [(titles[name], entry[metric.name] if entry else None) for name, entry in rows.items()]


def exports(quant: QuantSection, config: dict[str, Any]) -> list[str]:
    """Commands that write the folder of a config.json for runtimes which hold it exactly."""
    scheme, mode = quant.bits(), quant.activation.mode
    if scheme.activation_bits < HIGH_BITS or quant.activation.rotate:
        return []
    if quant.adaptive.share is not None:
        return []
    cached, rounds = scheme.kv_bits < FLOAT_BITS, scheme.activation_bits < FLOAT_BITS
    commands = []
    kept = mode in ("q8_0", "dynamic") or not rounds
    if kept and (quant.kv.llama_cpp or not cached) and llama.unsupported(config, scheme) is None:
        commands.append("edgeqat export gguf THIS_FOLDER --output model.gguf")
    kept = mode == "dynamic" or not rounds
    if kept and compressed_tensors.unsupported(config, scheme) is None:
        drop = " --drop-kv" if cached else ""
        commands.append(f"edgeqat export compressed-tensors THIS_FOLDER --output OUT{drop}")
    return commands


def render(metrics: dict[str, Any], recipe: Recipe, config: dict[str, Any]) -> str:
    """README.md of the packed folder with a config.json."""
    import jinja2

    name, metric = recipe.model.name.rstrip("/").rpartition("/")[2], metric_of(metrics)
    template = jinja2.Template(_TEMPLATE, keep_trailing_newline=True)
    rows = [(row, "-" if value is None else f"{value:.3f}") for row, value in table(metrics)]
    license = float_model.license_of(recipe.model.name)
    quant = recipe.quant
    commands = [_ONNX] if metric.of_images else exports(quant, config)
    return template.render(
        m=metrics,
        model=name,
        base=float_model.base_model(recipe.model.name),
        license=None if license in _NO_LICENSE else license,
        metric=metric.name,
        gap=metric.gap,
        images=metric.of_images,
        rows=rows,
        exports="\n".join(commands),
        adaptive=quant.adaptive.words(quant.bits()) if quant.adaptive.share is not None else "",
    )
