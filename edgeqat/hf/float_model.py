"""Where float models come from: aliases, local folders, GGUF files, the hub cache. Errors are one
line with a next step.

Weights are safetensors only; pickled ones (.bin, .pt) are refused. Nothing is downloaded when the
hub is off.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgeqat import checkpoint, gguf_header, source
from edgeqat.aliases import DEMO
from edgeqat.errors import FormatError, ModelError
from edgeqat.hf import gguf_model
from edgeqat.nn.finite import check_finite
from edgeqat.runtime.shape import Shape

IMAGE_TYPE = "edgeqat-image"  # model_type of image classifiers that transformers does not know
_TELLING = ("config.json", "preprocessor_config.json")  # how weights are used
_PICKLES = (".bin", ".pt", ".pth")
_CONVERT = (
    "which are never loaded; convert them: from_pretrained(..) and save_pretrained(..) in an "
    "environment where you trust the file"
)

_logger = logging.getLogger("edgeqat")


def locate(name: str) -> str:
    """The folder or hub id behind a model name: `demo`, an alias, a local folder, a hub id; of a
    GGUF file the folder it is read into.
    """
    if gguf_header.is_gguf(name):
        return str(gguf_model.folder(name))
    place = source.locate(name)
    if name != DEMO and Path(place).is_dir():
        _check_folder(Path(place))
    return place


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model, without its weights."""
    place = locate(name)
    try:
        return AutoConfig.from_pretrained(place)
    except Exception as error:
        raise ModelError(_explain(name, place, error)) from error


def load_model(name: str, weights: str | None = None) -> PreTrainedModel:
    """A float causal language model in float32; `weights` replaces its tensors from a safetensors
    file.
    """
    place = locate(name)
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(_explain(name, place, error)) from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise ModelError(f"model: '{name}' holds no weights for {missing}; copy the whole model")
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(f"model: '{name}' is quantized already; start from its float model")
    if weights is not None:
        replace_weights(model, weights)
    check_finite(model, weights or name)
    settle_tie(model)
    if gguf_header.is_gguf(name):
        _logger.info("%s: %s", Path(name).name, gguf_model.describe(name))
    return model


def load_as_stored(folder: Path) -> Any:
    """A model from a local folder of another runtime, quantized as it says, in float32."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
    except Exception as error:
        raise ModelError(_explain(str(folder), str(folder), error)) from error
    return model.eval()


def settle_tie(model: Any) -> None:
    """Make the config say whether head and embedding are one weight: a checkpoint that holds both
    is loaded with both, whatever its config says.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and table is not None:
        model.config.tie_word_embeddings = head.weight is table.weight


def random_model(
    shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random float Llama of the given sizes, to measure time and memory with."""
    torch.manual_seed(seed)
    config = LlamaConfig(**shape.config())
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model."""
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:
        raise ModelError(_explain(name, place, error, "tokenizer")) from error
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder):
        raise ModelError(  # transformers makes an empty one of some families without files
            f"tokenizer: '{name}' holds none but special tokens; copy its tokenizer files too"
        )
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuse a tokenizer that makes ids the model has no embedding for."""
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"model: the tokenizer has {len(tokenizer)} entries, the embedding only "
            f"{model.config.vocab_size}; use the tokenizer the model was trained with"
        )


def fingerprint(name: str, weights: str | None = None) -> str:
    """A hash of the weights behind a model name and of what says how they are used, where they are
    local files; else the name.
    """
    folder = Path(locate(name))
    files = sorted(folder.glob("*.safetensors")) if weights is None else [weights_file(weights)]
    files += [folder / file for file in _TELLING if (folder / file).is_file()]
    parts = [checkpoint.sha256(file)[:16] for file in files]
    return "-".join(parts if folder.is_dir() else [name, *parts])


def license_of(name: str) -> str | None:
    """The licence that a model's card states in its front matter; None where there is no card."""
    place = locate(name)
    card: Any = Path(place) / "README.md"
    if not Path(place).is_dir():
        card = try_to_load_from_cache(place, "README.md")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    parts = Path(card).read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front_matter = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    license = front_matter.get("license") if isinstance(front_matter, dict) else None
    return license if isinstance(license, str) else None


def base_model(name: str) -> str:
    """The name of a model for a card: its hub id, or the name of its folder or file."""
    if gguf_header.is_gguf(name):
        return Path(name).name
    place = locate(name)
    if name == DEMO:
        return DEMO
    return Path(place).resolve().name if Path(place).is_dir() else place


def _check_folder(path: Path) -> None:
    try:
        if f'"{IMAGE_TYPE}"' not in (path / "config.json").read_text(encoding="utf-8"):
            AutoConfig.from_pretrained(path)
    except Exception as error:
        raise ModelError(
            f"model: config.json of '{path}' is not readable ({_line(error)}); mend it"
        ) from None
    if list(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise ModelError(f"model: '{path}' holds pickled weights ({pickles[0]}), {_CONVERT}")
    raise ModelError(f"model: '{path}' holds no *.safetensors; copy the weights there")


def weights_file(weights: str) -> Path:
    """The safetensors file that replaces weights; pickled ones are refused."""
    path = Path(weights).expanduser()
    if path.suffix in _PICKLES:
        raise ModelError(f"model.weights: '{weights}' holds pickled weights, {_CONVERT}")
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(f"model.weights: '{weights}' is not a .safetensors file; name one")
    return path


def replace_weights(model: PreTrainedModel, weights: str) -> None:
    """Fill a model, in place, with the tensors of a safetensors file."""
    path = weights_file(weights)
    try:
        missing, unexpected = model.load_state_dict(checkpoint.read_tensors(path), strict=False)
    except (FormatError, RuntimeError) as error:
        raise ModelError(f"model.weights: '{weights}' does not fit ({_line(error)})") from None
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    wrong = [key for key in missing if key not in tied] + list(unexpected)
    if wrong:
        raise ModelError(
            f"model.weights: '{weights}' does not fit the model (for example {wrong[0]})"
        )
    model.tie_weights()


def _explain(name: str, place: str, error: Exception, noun: str = "model") -> str:
    if Path(place).is_dir():
        return f"{noun}: '{name}' cannot be loaded ({_line(error)}); check the folder's files"
    shown = f"'{name}'" if place == name else f"'{name}' ({place})"
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    if any(isinstance(one, GatedRepoError) for one in chain):
        return (
            f"{noun}: {shown} is gated; accept its licence on its page and log in with `hf auth "
            "login`, or give a local folder to --model"
        )
    if any(isinstance(one, RepositoryNotFoundError) for one in chain):
        return source.not_on_hub(name, place, noun)
    if "does not appear to have a file named" in str(error):
        return f"{noun}: {shown} lacks a file ({_line(error)}); pickled weights are never loaded"
    return source.unreachable(name, place, noun)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
