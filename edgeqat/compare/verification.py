"""What you trained is what you serve: every runtime that is at hand against the packed model, on
the same tokens.

The packed model is fake-quantization's, computed by torch in one pass. Torch with products in
float64 is the measure for the others: a code that rounds the other way changes all layers behind
it, so that no runtime which adds in another order can agree more. A runtime is our engine,
llama.cpp on a GGUF file, or transformers on a compressed-tensors folder. Each sees the same
prefixes (teacher-forced); its scores are those of compare/scores against the packed model.

Exports that are not given are made for the purpose, where the target holds the folder exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from edgeqat import checkpoint, gguf_header, native
from edgeqat.compare import llama_cpp
from edgeqat.compare.scores import Scores, write_reference
from edgeqat.data.sources import source_name
from edgeqat.data.text import held_out_blocks
from edgeqat.errors import AgreementError, EdgeQATError, UsageError
from edgeqat.evaluate.perplexity import conditions
from edgeqat.export import compressed_tensors, gguf, llama
from edgeqat.hf import float_model, packed_folder
from edgeqat.pipeline.evaluate import recipe_of
from edgeqat.pipeline.load import task_of_folder, with_data_root
from edgeqat.quant.exact import exact_products
from edgeqat.runtime.engine import Engine
from edgeqat.scheme import Scheme

ENGINE, LLAMA_CPP, TENSORS = "edgeqat engine", "llama.cpp", "compressed-tensors"
FLOAT64 = "torch in float64"
_INSTALL = {
    LLAMA_CPP: ("llama_cpp", "pip install 'edgeqat[peers]'"),
    TENSORS: ("compressed_tensors", "pip install compressed-tensors"),
}

Logits = Callable[[Tensor], Tensor]  # ids (T,) -> logits (T, V)


def verify(
    folder: Path,
    exports: list[Path],
    data: str | None = None,
    blocks: int | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Scores of every runtime on the held-out text of a folder's recipe, or of `data`; a runtime
    that cannot run the folder has a `reason` instead. Raises an EdgeQATError in one line.
    """
    threads = threads or native.physical_cores()
    torch.set_num_threads(threads)
    recipe = with_data_root(recipe_of(folder, data, blocks))
    held = held_out_blocks(recipe.data, packed_folder.load_tokenizer(folder))
    with TemporaryDirectory(prefix="edgeqat-verify-") as name:
        place = Path(name)
        tell("the packed model, in torch")
        reference = place / "reference.npy"
        own = write_reference(reference, packed_folder.load(folder), held.ids)
        rows: list[dict[str, Any]] = []
        at_hand = [(FLOAT64, folder), (ENGINE, folder), *_files(folder, exports, place)]
        for runtime, file in at_hand:
            tell(f"{runtime}: {file}")
            row: dict[str, Any] = {"runtime": runtime, "file": _shown(file, place)}
            if isinstance(file, str):
                rows.append({**row, "reason": file})
                continue
            began = time.monotonic()
            try:
                with _opened(runtime, file, folder, held.ids.shape[1], threads) as logits:
                    row |= _scores(logits, held.ids, reference)
            except EdgeQATError as error:
                row["reason"] = str(error)
            rows.append({**row, "seconds": time.monotonic() - began})
    return {
        "model": str(folder),
        "scheme": recipe.quant.scheme,
        "data": source_name(recipe.data),
        "perplexity": own["perplexity"],
        "evaluation": conditions(recipe.data, held),
        "rows": rows,
    }


def check_exports(exports: list[Path]) -> None:
    """Refuse at the start what is no export that can be verified."""
    for file in exports:
        _runtime_of(file)


def check_folder(folder: Path) -> None:
    """Refuse at the start what is no packed folder of a language model."""
    if task_of_folder(folder).metric.of_images:
        raise UsageError(f"folder: '{folder}' is an image classifier; `edgeqat eval` scores it")


def check_least(result: dict[str, Any], least: float) -> None:
    """An AgreementError where a runtime has fewer same top tokens, in percent."""
    shares = {row["runtime"]: row["same_top"] for row in result["rows"] if "same_top" in row}
    measure = shares.pop(FLOAT64)
    lowest = min(shares.values(), default=0.0)
    if lowest < least:
        raise AgreementError(
            f"verify: {lowest:.2f}% same top tokens are below --least {least:g} ({FLOAT64}: "
            f"{measure:.2f}%); give less, or export the folder again without --requantize"
        )


def _files(folder: Path, exports: list[Path], place: Path) -> Iterator[tuple[str, Path | str]]:
    """Runtimes with the file that each reads, or with the reason why there is none."""
    given = [(_runtime_of(file), file) for file in exports]
    for runtime, (package, way) in _INSTALL.items():
        files = [file for kind, file in given if kind == runtime]
        if find_spec(package) is None:
            yield runtime, f"it is not installed; {way}"
        elif files:
            yield from ((runtime, file) for file in files)
        else:
            try:
                yield runtime, _exported(runtime, folder, place)
            except EdgeQATError as error:
                yield runtime, str(error)


def _exported(runtime: str, folder: Path, place: Path) -> Path:
    if runtime == LLAMA_CPP:
        gguf.check_installed()
        target = place / "model.gguf"
        gguf.export(folder, target)
        return target
    target = place / TENSORS
    compressed_tensors.export(folder, target)
    return target


def _runtime_of(file: Path) -> str:
    if not file.exists():
        raise UsageError(f"export: '{file}' does not exist; give a file or folder of an export")
    if gguf_header.is_gguf(str(file)):
        return LLAMA_CPP
    config = file / checkpoint.CONFIG
    if config.is_file() and f'"{TENSORS}"' in config.read_text(encoding="utf-8"):
        return TENSORS
    raise UsageError(
        f"export: '{file}' is no GGUF file and no compressed-tensors folder; give one that "
        "`edgeqat export` wrote"
    )


@contextmanager
def _opened(runtime: str, file: Path, folder: Path, context: int, threads: int) -> Iterator[Logits]:
    if runtime == ENGINE:
        with closing(Engine(file, threads)) as engine:

            def prefill(ids: Tensor) -> Tensor:
                engine.reset()
                return torch.from_numpy(engine.prefill(ids.tolist(), every=True))

            yield prefill
    elif runtime == LLAMA_CPP:
        scheme = checkpoint.read_config(folder)["quantization_config"]["scheme"]
        cache = llama.KV_TYPES.get(Scheme.parse(scheme).kv_bits, "f16")
        with llama_cpp.opened(file, context, cache, threads) as logits:
            yield logits
    else:
        is_own = runtime == FLOAT64
        model = packed_folder.load(file) if is_own else float_model.load_as_stored(file)
        with exact_products(is_own):
            yield lambda ids: model(input_ids=ids[None], use_cache=False).logits[0]


@torch.inference_mode()
def _scores(logits: Logits, ids: Tensor, reference: Path) -> dict[str, Any]:
    scores = Scores(reference)
    for row in ids:
        scores.add(row, logits(row))
    return scores.result()


def _shown(file: Path | str, place: Path) -> str | None:
    """The file, where it is the user's."""
    return None if isinstance(file, str) or file.is_relative_to(place) else str(file)
