"""The packed keys and values of one attention layer: two streams of tokens, low and 8 bit.

Every sequence of the batch has its own tokens in each stream, in order; `high` says in which stream
a token is, and its place there is the number of tokens of its kind before it. A stream holds rows
of packed codes (quant/cache_rows) and fp16 scales and grows by a few tokens at a time.

Legend: B batch, K key/value heads, T new tokens, S stored tokens, D head_dim, C capacity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeqat.quant.dynamic import CacheQuantizer

_GROWTH = 16  # tokens


class TokenStore:
    """Packed keys and values of a batch (B) of sequences that have the same number S of tokens."""

    def __init__(self, key: CacheQuantizer, value: CacheQuantizer) -> None:
        self.quantizers = (key, value)
        self.high: Tensor | None = None  # (B, S) bool
        self.streams: dict[bool, list[Tensor]] = {}  # is high -> rows and scales of k, then of v
        self.head_dim = 0

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return 0 if self.high is None else self.high.shape[1]

    @property
    def batch(self) -> int:
        """Sequences; 0 while nothing is stored."""
        return 0 if self.high is None else self.high.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        tensors = [tensor for stream in self.streams.values() for tensor in stream]
        tensors += [] if self.high is None else [self.high]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.no_grad()
    def append(self, key: Tensor, value: Tensor, high: Tensor) -> None:
        """Store k and v (B, K, T, D); `high` (B or 1, T) bool marks the tokens at 8 bit."""
        batch, self.head_dim = key.shape[0], key.shape[-1]
        high = high.expand(batch, -1)
        if self.quantizers[0].low.bits >= self.quantizers[0].high.bits:
            high = torch.ones_like(high)
        if self.high is None:
            self.high = high[:, :0]
        whole = torch.cat([self.high, high], dim=1)
        for wanted in (False, True):
            chosen = whole if wanted else ~whole
            new = chosen[:, self.length :]
            if not new.any():
                continue
            encoded = self._encode(key, value, wanted)
            places = (chosen.cumsum(1) - 1)[:, self.length :]
            rows, tokens = new.nonzero(as_tuple=True)
            stream = self._grown(wanted, encoded, int(chosen.sum(1).max()))
            for stored, part in zip(stream, encoded, strict=True):
                stored[rows, :, places[rows, tokens]] = part[rows, :, tokens]
        self.high = whole

    def read(self, start: int = 0) -> tuple[Tensor, Tensor]:
        """All k and v (B, K, S, D) but the first `start` tokens, dequantized to float32."""
        assert self.high is not None
        counts = {wanted: self._count(wanted) for wanted in (True, False)}
        decoded = []
        for part, quantizer in enumerate(self.quantizers):
            pieces = []
            for wanted, count in counts.items():
                if count:
                    packed, scale = self.streams[wanted][2 * part : 2 * part + 2]
                    packed, scale = packed[:, :, :count], scale[:, :, :count]
                    pieces.append(quantizer.decode(packed, scale, wanted, self.head_dim))
            decoded.append(pieces)
        if min(counts.values()) == 0:  # one stream is in the order of the tokens
            return decoded[0][0][:, :, start:], decoded[1][0][:, :, start:]
        place = torch.where(
            self.high, self.high.cumsum(1) - 1, (~self.high).cumsum(1) - 1 + counts[True]
        )
        heads = decoded[0][0].shape[1]
        index = place[:, None, start:, None].expand(-1, heads, -1, self.head_dim)
        key, value = (torch.cat(pieces, dim=2).gather(2, index) for pieces in decoded)
        return key, value

    def keep(self, start: int, stop: int) -> None:
        """Forget all tokens but start .. stop - 1."""
        if self.high is None or (start == 0 and stop == self.length):
            return
        if start >= stop:
            self.clear()
            return
        before, self.high = self.high[:, :start], self.high[:, start:stop].clone()
        for wanted, stream in self.streams.items():
            count = self._count(wanted)
            dropped = (before if wanted else ~before).sum(1)
            place = torch.arange(count, device=before.device) + dropped[:, None]
            place = place.clamp(max=stream[0].shape[2] - 1)  # of sequences with fewer tokens
            for part, tensor in enumerate(stream):
                index = place[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
                stream[part] = tensor.gather(2, index)

    def map_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the first dimension (reordering, repeating, picking sequences)."""
        if self.high is not None:
            self.high = change(self.high)
            self.streams = {w: [change(t) for t in stream] for w, stream in self.streams.items()}

    def clear(self) -> None:
        """Forget everything."""
        self.high, self.streams = None, {}

    def _count(self, wanted: bool) -> int:
        """Tokens of one kind in the sequence that has most of them."""
        if self.high is None or not self.length:
            return 0
        return int((self.high if wanted else ~self.high).sum(1).max())

    def _encode(self, key: Tensor, value: Tensor, high: bool) -> list[Tensor]:
        key_quantizer, value_quantizer = self.quantizers
        return [*key_quantizer.encode(key, high), *value_quantizer.encode(value, high)]

    def _grown(self, wanted: bool, like: list[Tensor], count: int) -> list[Tensor]:
        """The stream with room for `count` tokens a sequence."""
        stream = self.streams.setdefault(wanted, [part[:, :, :0] for part in like])
        if stream[0].is_inference() and not torch.is_inference_mode_enabled():
            stream[:] = [tensor.clone() for tensor in stream]  # others cannot be written to
        if stream[0].shape[2] < count:
            room = -(-count // _GROWTH) * _GROWTH
            for part, tensor in enumerate(stream):
                batch, heads, length, size = tensor.shape
                grown = tensor.new_zeros(batch, heads, room, size)
                grown[:, :, :length] = tensor
                stream[part] = grown
        return stream
