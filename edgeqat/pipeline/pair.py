"""A packed language model beside its float model, as readers: the engine where it runs the whole
folder, which is what is served, else torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgeqat import checkpoint, native
from edgeqat.errors import UsageError, nearest
from edgeqat.evaluate.reader import EngineReader, Reader, TorchReader
from edgeqat.families import positions_of
from edgeqat.harness.backends import FAKE_QUANT, NATIVE, PACKED
from edgeqat.hf import float_model, packed_folder
from edgeqat.pipeline.text_task import check_same_vocabulary
from edgeqat.runtime.engine import engine_for

logger = logging.getLogger(__name__)
BACKENDS = (NATIVE, FAKE_QUANT, PACKED)


class Pair(NamedTuple):
    """Tokenizer, packed and float model."""

    tokenizer: Any
    model: Reader
    floating: TorchReader


@contextmanager
def pair(
    folder: Path, against: str, backend: str | None = None, threads: int | None = None
) -> Iterator[Pair]:
    """A packed folder and the float model it is compared with; `backend` None is the engine where
    it runs the folder. Raises an EdgeQATError in one line.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"backend: '{backend}' is unknown here; {nearest(backend, [*BACKENDS])}")
    config = checkpoint.verify(folder)
    tokenizer = packed_folder.load_tokenizer(folder)
    floating = float_model.load_model(against).eval()
    check_same_vocabulary("against", against, floating, config["vocab_size"], tokenizer)
    model = _opened(folder, config, backend, threads)
    try:
        yield Pair(tokenizer, model, TorchReader(floating))
    finally:
        model.close()


def _opened(
    folder: Path, config: dict[str, Any], backend: str | None, threads: int | None
) -> Reader:
    if backend in (None, NATIVE) and (backend == NATIVE or native.library() is not None):
        native.require()
        try:
            tokens = 0 if backend == NATIVE else positions_of(config)
            return EngineReader(engine_for(folder, tokens, threads))
        except native.UnsupportedModel as error:
            if backend == NATIVE:
                raise UsageError(
                    f"backend: native does not run '{folder}' ({error}); choose fake-quant"
                ) from None
            logger.warning("engine: %s; using torch, slower", error)
    name = backend if backend in (FAKE_QUANT, PACKED) else FAKE_QUANT
    packed = packed_folder.load(folder, integer=name == PACKED, verify=False)
    return TorchReader(packed, name)
