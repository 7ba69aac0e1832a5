"""The KV cache that holds packed codes: per layer int2..int8 rows and fp16 scales (nn/token_store).

    cache = KVCache(model)
    model.generate(ids, past_key_values=cache)      # generate() makes one by itself

A layer of transformers' cache is given new keys and values before attention knows which tokens are
sinks or important. So it stores nothing yet: it hands them to the layer's AttentionQuantizer, which
quantizes them once and gets back all that is stored, dequantized for the product at hand. Numbers
are those of fake-quantization in one pass.

Legend: B batch, K key/value heads, T new tokens, S stored tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from edgeqat.errors import UsageError
from edgeqat.families import window_of
from edgeqat.nn.attention import AttentionQuantizer
from edgeqat.nn.layers import attentions
from edgeqat.nn.token_store import TokenStore

_PREPARE = "_prepare_cache_for_generation"
_SPARE = 8  # hidden tokens behind a window that are forgotten at a time


class PackedLayer(CacheLayerMixin):
    """The cache of one attention layer, bound to that layer's quantizers."""

    is_croppable = True
    is_sliding = False

    def __init__(self, quantizer: AttentionQuantizer, positions: int) -> None:
        super().__init__()
        assert quantizer.key is not None and quantizer.value is not None
        self.quantizer, self.positions = quantizer, positions
        self.store = TokenStore(quantizer.key, quantizer.value)
        self.seen = 0

    @property
    def stored(self) -> int:
        """Tokens per sequence that attention will get besides the new ones."""
        return self.store.length

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLayer:
        """Its own tokens for the same model, unless that is copied too."""
        for shared in (self.quantizer, *self.store.quantizers):
            memo.setdefault(id(shared), shared)
        copied = copy(self)
        copied.store = deepcopy(self.store, memo)
        copied.quantizer = memo[id(self.quantizer)]
        return copied

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand new k, v (B, K, T, D) to the layer's quantizer, which calls append()."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, tokens = key_states.shape[0], key_states.shape[2]
        if self.store.batch not in (0, batch):
            raise UsageError(
                f"cache: it holds a batch of {self.store.batch} and is given {batch} sequences; "
                "make a new one for them"
            )
        if self.seen + tokens > self.positions:
            raise UsageError(
                f"cache: position {self.seen + tokens} is beyond the model's {self.positions} "
                "positions; give a shorter prompt or fewer new tokens"
            )
        self.quantizer.waiting = self
        return key_states, value_states

    def append(self, key: Tensor, value: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Store new k, v, those `high` (B or 1, T) at 8 bit; all stored ones (B, K, S, D) come
        back.
        """
        hidden = self.store.length - self.stored
        self.store.append(key, value, high)
        self.seen += key.shape[2]
        keys, values = self.store.read(hidden)
        return keys.to(key.dtype), values.to(value.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.positions

    def reset(self) -> None:
        self.store.clear()
        self.seen, self.is_initialized = 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; as in transformers their number is given negative."""
        if tokens_to_remove > 0 or -tokens_to_remove > self.seen:
            raise UsageError(
                f"cache: crop({tokens_to_remove}) of {self.seen} tokens; give minus the number of "
                "newest tokens to forget"
            )
        self.seen += tokens_to_remove
        self.store.keep(0, self.seen)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda tensor: tensor[indices])

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self.store.map_batch(change)


class PackedSlidingLayer(PackedLayer):
    """The cache of a sliding-window layer: what is behind the window is hidden, and forgotten a few
    tokens at a time.
    """

    is_croppable = False
    is_sliding = True

    def __init__(self, quantizer: AttentionQuantizer, positions: int, sliding_window: int) -> None:
        super().__init__(quantizer, positions)
        self.sliding_window = sliding_window

    @property
    def stored(self) -> int:
        return min(self.store.length, self.sliding_window - 1)

    def append(self, key: Tensor, value: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        keys_values = super().append(key, value, high)
        hidden = self.store.length - self.stored
        if hidden >= _SPARE:
            self.store.keep(hidden, self.store.length)
        return keys_values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.stored + query_length, max(self.seen - self.sliding_window + 1, 0)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove and self.seen >= self.sliding_window:
            raise UsageError(
                "cache: a sliding window keeps nothing to go back to; make a new cache"
            )
        super().crop(tokens_to_remove)


class KVCache(Cache):
    """A packed cache for one prepared or packed model; its sequences may be continued."""

    def __init__(self, model: PreTrainedModel) -> None:
        if not is_packable(model):
            raise UsageError(
                "cache: the model's keys and values are float, or of a baseline that revises them; "
                "use transformers' DynamicCache"
            )
        config = model.config.get_text_config(decoder=True)
        layers: list[Any] = []
        if getattr(config, "layer_types", None):  # without attention they keep transformers' own
            layers = DynamicCache(config=config).layers
        positions = config.max_position_embeddings
        for _, attention in attentions(model):
            quantizer, number = attention.attention_quantizer, attention.layer_idx
            quantizer.waiting = None  # of a forward pass that was cut off
            layers += [None] * (number + 1 - len(layers))
            window = window_of(config, number)
            if window is None:
                layers[number] = PackedLayer(quantizer, positions)
            else:
                layers[number] = PackedSlidingLayer(quantizer, positions, window)
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, capacity that is not filled yet included."""
        packed = (layer for layer in self.layers if isinstance(layer, PackedLayer))
        return sum(layer.store.nbytes for layer in packed)


def new_cache(model: PreTrainedModel) -> Cache:
    """The cache that generate() would use: packed where keys and values are."""
    return KVCache(model) if is_packable(model) else DynamicCache(config=model.config)


def is_packable(model: nn.Module) -> bool:
    """Whether a model's keys and values are quantized token by token."""
    quantizers = [getattr(a, "attention_quantizer", None) for _, a in attentions(model)]
    keys = [quantizer.key if quantizer is not None else None for quantizer in quantizers]
    by_token = not any(quantizer.revises for quantizer in quantizers if quantizer is not None)
    return bool(keys) and by_token and all(key is not None and key.enabled for key in keys)


def make_default(model: PreTrainedModel) -> None:
    """Let generate() use a packed cache unless it is told otherwise."""
    model.__dict__[_PREPARE] = _Preparation(model)


def unmake_default(model: PreTrainedModel) -> None:
    """Undo make_default."""
    model.__dict__.pop(_PREPARE, None)


class _Preparation:
    """In the place of a model's own _prepare_cache_for_generation; a bound method would make a file
    of torch.save unreadable.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any, **named: Any
    ) -> Any:
        model, cache = self.model, model_kwargs.get("past_key_values")
        plain = getattr(type(model), _PREPARE)
        result = plain(model, generation_config, model_kwargs, *rest, **named)
        made = model_kwargs.get("past_key_values")
        is_dynamic = type(made) is DynamicCache and not made.offloading
        if cache is None and is_dynamic and is_packable(model):
            packed = KVCache(model)
            if not generation_config.is_assistant or all(
                layer.is_croppable for layer in packed.layers
            ):
                model_kwargs["past_key_values"] = packed
        return result
