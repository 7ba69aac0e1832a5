"""Float models from GGUF files: transformers' reader turns the weights into float32 and the fields
into a configuration and a tokenizer; the result stays in EDGEQAT_CACHE as a model folder, since
reading takes many seconds.

Put right here, since the reader leaves it out: biases of Llama, sizes of heads and scalings of
positions that differ from the defaults, how some tokenizers split a text, the end of a turn.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from edgeqat import cache as kept
from edgeqat import checkpoint, gguf_header
from edgeqat.errors import ModelError
from edgeqat.families import LLAMA
from edgeqat.gguf_header import Header

_FORMAT = 1  # of the folders in the cache: another number reads every file anew
_KEPT = "gguf"  # the cache's folder
_FILE = "model.gguf"
_ROPE, _FULL = "rope_freqs.weight", "full_attention"
# Llama 3.1 and later: low and high frequency factors, and the positions before the scaling
_LLAMA3 = (1.0, 4.0, 8192)
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_PLAIN = ("gpt-2", "gpt2")
_WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3")  # words of the vocabulary stay whole
_NORMALIZED = ("qwen2",)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_USER_DEFINED = 4
_SPACE = "\u2581"
_MARKED = (2, 3, _USER_DEFINED)  # llama.cpp's types: unknown, control, user-defined
_EXACT = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

_logger = logging.getLogger("edgeqat")


def folder(name: str) -> Path:
    """The float model folder of a GGUF file, made at the first call. Raises ModelError in one
    line.
    """
    path = Path(name).expanduser()
    header = gguf_header.check(name)
    status = path.stat()
    version = f"{transformers.__version__}-{_FORMAT}"
    digest = _digest(path.absolute(), status.st_size, status.st_mtime_ns)
    place = kept.folder(_KEPT) / f"{path.stem}-{digest[:16]}-{version}"
    if not _is_whole(place):
        _fill(place, path, header)
    return place


def describe(name: str) -> str:
    """What a GGUF file's weights were, for a line of the log."""
    types = gguf_header.check(name).types()
    return f"weights were {types} in the GGUF file; read as float32"


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """The hash of a file; computed anew when its size or time changes."""
    return checkpoint.sha256(path)


def _fill(place: Path, path: Path, header: Header) -> None:
    """Read a file into a folder that is whole or absent; another process may do the same."""
    total = 4 * sum(tensor.size for tensor in header.tensors) / 1e9
    _logger.info("reading '%s' once; %.1f GB of float32 stay in '%s'", path, total, place.parent)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            _convert(path, header, temporary)
            if _is_whole(place):  # by another process since, which may be loading it
                return
            shutil.rmtree(place, ignore_errors=True)  # damaged
            temporary.chmod(0o755)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if _is_whole(place):
            return
        raise ModelError(
            f"model: '{path}' becomes {total:.1f} GB of float32, which cannot be kept in "
            f"'{place.parent}' ({error.strerror or error}); set {kept.VARIABLE} to another place"
        ) from None


def _is_whole(place: Path) -> bool:
    """Whether a folder that was read from a file is there with config and weights."""
    return (place / checkpoint.CONFIG).is_file() and (place / checkpoint.WEIGHTS).is_file()


def _convert(path: Path, header: Header, target: Path) -> None:
    """Write config, weights and tokenizer of a file into a folder."""
    alone = target / "source"  # without the files beside it, which transformers would read too
    alone.mkdir()
    (alone / _FILE).symlink_to(path.absolute())
    try:
        with redirect_stderr(io.StringIO()):  # a bar that no option switches off
            config = _config(alone, path, header)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                alone,
                config=config,
                gguf_file=_FILE,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
            tokenizer = _tokenizer(alone, header)
    except (ModelError, OSError):
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f"model: '{path}' cannot be read ({line}); download it again, or name the model's "
            "folder"
        ) from error
    finally:
        shutil.rmtree(alone)
    model, info = loaded
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    missing = sorted(set(info["missing_keys"]) - tied)
    if missing:
        raise ModelError(f"model: '{path}' holds no weights for {missing[0]}; download it again")
    _check_all_read(path, header, model)
    tensors = {name: value for name, value in model.state_dict().items() if name not in tied}
    checkpoint.write_tensors(target / checkpoint.WEIGHTS, tensors)
    fresh = _without_quantization(model.config)
    fresh.architectures = [type(model).__name__]
    fresh.save_pretrained(target)
    _set_ends(model.generation_config, header)
    model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    license = header.fields.get("general.license")
    if isinstance(license, str):
        card = f"---\nlicense: {license}\n---\n"
        (target / "README.md").write_text(card, encoding="utf-8")


def _without_quantization(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same configuration, which may be saved."""
    values = config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        values.pop(name, None)
    return type(config)(**values)


def _config(alone: Path, path: Path, header: Header) -> PreTrainedConfig:
    """The configuration, with what the reader leaves out."""
    config = AutoConfig.from_pretrained(alone, gguf_file=_FILE)
    names = {tensor.name for tensor in header.tensors}
    if header.architecture == "gpt2":
        config.n_positions = header.architecture_field("context_length", config.n_positions)
        config.n_inner = header.architecture_field("feed_forward_length")
        return config
    head = header.architecture_field("attention.key_length")
    if head is not None:
        config.head_dim = head
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = header.architecture_field("rope.dimension_count", head)
    if rotated != head:
        raise ModelError(
            f"model: '{path}' rotates {rotated} of {head} channels of a head, which is not "
            "supported; name the model's folder"
        )
    if header.architecture == LLAMA:
        config.attention_bias = "blk.0.attn_q.bias" in names
        config.mlp_bias = "blk.0.ffn_up.bias" in names
    rope = config.rope_parameters
    if _FULL in rope:  # of two kinds of layers; the windows of the others need no scaling
        scaling = _scaling(path, header, rope[_FULL]["rope_theta"], head)
        config.rope_parameters = {**rope, _FULL: {**rope[_FULL], **scaling}}
    else:
        config.rope_parameters = {**rope, **_scaling(path, header, rope["rope_theta"], head)}
    return config


def _scaling(path: Path, header: Header, theta: float, head: int) -> dict[str, Any]:
    """How positions are scaled, as `rope_parameters` says it; empty: they are not."""
    kind = header.architecture_field("rope.scaling.type", "none")
    factor = header.architecture_field("rope.scaling.factor", 1.0)
    if kind == "linear" and factor != 1.0:
        return {"rope_type": "linear", "factor": factor}
    if kind not in ("none", "linear"):
        raise ModelError(
            f"model: '{path}' scales positions by '{kind}', which is not read from GGUF; name the "
            "model's folder"
        )
    tensor = next((one for one in header.tensors if one.name == _ROPE), None)
    if tensor is None:
        return {}
    divisors = np.fromfile(path, np.float32, tensor.size, offset=tensor.offset)
    if np.all(divisors == 1):
        return {}
    low, high, positions = _LLAMA3
    factor = float(divisors.max())
    length = 2 * np.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((positions / length - low) / (high - low), 0, 1)
    expected = 1 / (smooth + (1 - smooth) / factor)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise ModelError(
            f"model: '{path}' scales positions ({_ROPE}) otherwise than Llama 3 does; name the "
            "model's folder"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": positions,
    }


def _check_all_read(path: Path, header: Header, model: Any) -> None:
    """Refuse a file with a tensor that the model has no place for: it would be left out."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    places = {*get_gguf_hf_weights_map(model, TensorProcessor()), _ROPE, "output.weight"}
    left = [tensor.name for tensor in header.tensors if tensor.name not in places]
    if left:
        raise ModelError(
            f"model: tensor {left[0]} of '{path}' has no place in a '{model.config.model_type}' "
            "model of transformers; name the model's folder"
        )


def _tokenizer(alone: Path, header: Header) -> PreTrainedTokenizerBase:
    """The tokenizer, with the file's own tokens only, and split as the file says."""
    from transformers.integrations.gguf import get_gguf_tokenizer  # many tokenizers: a second

    read = PreTrainedTokenizerFast.from_pretrained(alone, gguf_file=_FILE)
    _, words, _ = get_gguf_tokenizer(str(alone / _FILE))
    inner = Tokenizer.from_str(_with_own_tokens(read.backend_tokenizer.to_str(), words))
    if words["tokenizer_type"] == "gpt2":
        _set_split(inner, words.get("pre_tokenizer_type"))
    elif words.get("add_prefix_space") is False:
        inner.normalizer = None
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        inner.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    special = {name: getattr(read, name) for name in _SPECIAL if getattr(read, name) is not None}
    template = header.fields.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **special)


def _with_own_tokens(text: str, words: dict[str, Any]) -> str:
    """A tokenizer.json whose special tokens are those that a file marks, under their own numbers:
    the reader adds those of GPT-2, and spells some in bytes.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    whole = json.loads(text)
    vocabulary, spelling = whole["model"]["vocab"], bytes_to_unicode()
    marked, kinds = [], words.get("token_type") or []
    for number, (word, kind) in enumerate(zip(words["tokens"], kinds, strict=False)):
        if kind not in _MARKED:
            continue
        if word not in vocabulary and word.replace(" ", _SPACE) in vocabulary:
            continue  # spaces in a row, which merges join
        if word not in vocabulary:
            vocabulary.pop("".join(spelling[byte] for byte in word.encode()), None)
            vocabulary[word] = number
        marked.append({"id": number, "content": word, "special": kind != _USER_DEFINED, **_EXACT})
    whole["added_tokens"] = marked
    return json.dumps(whole, ensure_ascii=False)


def _set_split(inner: Any, split: str | None) -> None:
    """Split a text as the name of a pre-tokenizer says."""
    if split in _DIGITS:
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split in _WHOLE_WORDS:
        inner.model.ignore_merges = True
    elif split in _NORMALIZED:
        inner.normalizer = normalizers.NFC()
    elif split not in _PLAIN:
        _logger.warning(
            "tokenizer: split '%s' of the GGUF file is not checked; compare some texts with "
            "the model's own tokenizer",
            split,
        )


def _set_ends(generation: Any, header: Header) -> None:
    """A text ends where the file says that one or a turn of a conversation ends."""
    ends = [header.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    end_ids = list(dict.fromkeys(end for end in ends if end is not None))
    generation.eos_token_id = end_ids if len(end_ids) > 1 else (end_ids or [None])[0]
    generation.bos_token_id = header.fields.get("tokenizer.ggml.bos_token_id")
