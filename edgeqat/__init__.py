"""EdgeQAT: quantization-aware training of small language models, and the packed folder they are
served from.

The public names below are imported when they are first used; `import edgeqat` loads neither torch
nor transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ERRORS = (
    "AgreementError", "DataError", "EdgeQATError", "FormatError", "Interrupted", "ModelError",
    "OutputError", "RecipeError", "SchemeError", "StorageError", "TrainingError", "UsageError",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_ERRORS, "edgeqat.errors"),
    "Engine": "edgeqat.runtime.engine",
    "KVCache": "edgeqat.hf.kv_cache",
    "Objective": "edgeqat.train.objective",
    "QATTrainer": "edgeqat.train.trainer",
    "QuantSection": "edgeqat.recipe.quant",
    "Recipe": "edgeqat.recipe.recipe",
    "Scheme": "edgeqat.scheme",
    "calibrate": "edgeqat.nn.calibration",
    "convert": "edgeqat.nn.convert",
    "load": "edgeqat.hf.packed_folder",
    "load_recipe": "edgeqat.recipe.files",
    "perplexity": "edgeqat.evaluate.perplexity",
    "prepare": "edgeqat.hf.model",
    "quantize": "edgeqat.pipeline.quantize",
    "quantizers_disabled": "edgeqat.nn.switch",
    "restore": "edgeqat.hf.model",
    "save": "edgeqat.hf.model",
}
_RENAMED = {"load_recipe": "load"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeqat' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
