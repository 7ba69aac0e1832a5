"""The model card of a packed folder: what it is, the honest table, how to load it."""

from __future__ import annotations

from typing import Any

from edgeqat.recipe import Recipe

_TEMPLATE = """---
library_name: edgeqat
base_model: {{ model }}
base_model_relation: quantized
tags: [edgeqat, quantization-aware-training, {{ m.scheme }}]
---
# {{ model }} at {{ m.scheme }}

Trained with quantization in the loop by [EdgeQAT](https://arxiv.org/abs/2402.10787) for
{{ m.train.steps }} steps and packed as the learned integers. `recipe.resolved.yaml` beside this
file repeats the run.

| | perplexity |
|---|---|
{% for name, value in rows %}| {{ name }} | {{ value }} |
{% endfor %}
{% if m.recovered is not none -%}
Recovered {{ "%.1f"|format(100 * m.recovered) }}% of what quantization without training loses
(in log-perplexity).
{% endif -%}
Evaluated on {{ m.evaluation.blocks }} blocks of {{ m.evaluation.context }} held-out tokens,
{{ "with" if m.evaluation.bos else "without" }} BOS, one pass.

Size: {{ "%.2f"|format(m.bytes.total / 1e6) }} MB packed,
{{ "%.2f"|format(m.bytes.fp16 / 1e6) }} MB at fp16.

```python
import edgeqat
model = edgeqat.load("THIS_FOLDER")        # checks every file
# or: import edgeqat.hf; AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
```
"""


def table(metrics: dict[str, Any]) -> list[tuple[str, float | None]]:
    """The honest rows: name and perplexity (None: not computed)."""
    same = metrics["float_same_steps"]
    steps = metrics["train"]["steps"]
    return [
        ("float", metrics["float"]["perplexity"]),
        (f"float, trained for the same {steps} steps", same["perplexity"] if same else None),
        (f"PTQ at {metrics['scheme']}, no training", metrics["ptq"]["perplexity"]),
        ("... rotated, where QAT starts", metrics["qat_start"]["perplexity"]),
        (f"QAT at {metrics['scheme']}, packed", metrics["qat"]["perplexity"]),
    ]


def render(metrics: dict[str, Any], recipe: Recipe) -> str:
    """README.md of the packed folder."""
    import jinja2

    name = recipe.model.name.rstrip("/").rpartition("/")[2]
    template = jinja2.Template(_TEMPLATE, keep_trailing_newline=True)
    rows = [(row, "-" if value is None else f"{value:.3f}") for row, value in table(metrics)]
    return template.render(m=metrics, model=name, rows=rows)
