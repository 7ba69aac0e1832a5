"""Figures of the report as inline SVG, and maps as PNG data URIs: nothing is loaded from anywhere.

Colours come from the page's style sheet (classes s0, s1, ... for series), so that one figure serves
light and dark. A figure scales with its box.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 12, 40
_TICKS = 4


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    across: str,
    up: str,
    fill: bool = False,
    first: int = 0,
) -> str:
    """Curves over x by name; `fill` shades below them, `first` is the colour of the first."""
    values = [value for curve in series.values() for value in curve if math.isfinite(value)]
    low, high = _range(values, zero=fill)
    left, right = min(x), max(x)
    right += right == left

    def place(at: float, value: float) -> str:
        return f"{_x(at, left, right):.1f},{_y(value, low, high):.1f}"

    parts = [_axes(left, right, low, high, across, up)]
    for number, curve in enumerate(series.values(), first):
        path = " ".join(place(a, v) for a, v in zip(x, curve, strict=True) if math.isfinite(v))
        if fill:
            base = f"{place(right, low)} {place(left, low)}"
            parts.append(f'<polygon class="f{number}" points="{path} {base}"/>')
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
    return _figure(parts, list(series), first)


def bars(
    names: Sequence[str], series: Mapping[str, Sequence[float]], up: str, first: int = 0
) -> str:
    """A group of bars for each name, one bar a series; `first` is the colour of the first."""
    _, high = _range([value for heights in series.values() for value in heights], zero=True)
    room = (_WIDTH - _LEFT - _RIGHT) / len(names)
    wide = room * 0.8 / len(series)
    parts = [_axes(None, None, 0, high, "", up)]
    every = math.ceil(len(names) / 12)
    for group, name in enumerate(names):
        start = _LEFT + group * room + 0.1 * room
        for number, heights in enumerate(series.values()):
            top = _y(heights[group], 0, high)
            height = max(_HEIGHT - _BOTTOM - top, 0.5)
            parts.append(
                f'<rect class="b{first + number}" x="{start + number * wide:.1f}" y="{top:.1f}" '
                f'width="{wide:.1f}" height="{height:.1f}">'
                f"<title>{escape(name)}: {heights[group]:.4g}</title></rect>"
            )
        if group % every == 0:
            parts.append(_text(start + 0.4 * room, _HEIGHT - _BOTTOM + 16, name, "middle"))
    return _figure(parts, list(series), first)


def rows(
    entries: Sequence[tuple[str, float, float]], across: str, limit: float | None = None
) -> str:
    """Horizontal bars (name, value, deviation); `limit` is a line across them."""
    height = _TOP + _BOTTOM + 26 * len(entries)
    left, gap = 150, 70
    high = max([value + sd for _, value, sd in entries] + [limit or 0]) or 1.0

    def at(value: float) -> float:
        return left + (_WIDTH - left - gap) * value / high

    parts = []
    for number, (name, value, deviation) in enumerate(entries):
        top = _TOP + 26 * number
        kind = "b0" if number == 0 else "b1"
        parts.append(
            f'<rect class="{kind}" x="{left}" y="{top}" width="{max(at(value) - left, 0.5):.1f}" '
            'height="18"/>'
        )
        if deviation:
            ends = f'x1="{at(value - deviation):.1f}" x2="{at(value + deviation):.1f}"'
            parts.append(f'<line class="axis" {ends} y1="{top + 9}" y2="{top + 9}"/>')
        parts.append(_text(left - 6, top + 13, name, "end"))
        parts.append(_text(at(value + deviation) + 5, top + 13, f"{value:,.4g}", "start"))
    if limit:
        ends = f'y1="{_TOP - 6}" y2="{height - _BOTTOM + 2}"'
        parts.append(f'<line class="limit" x1="{at(limit):.1f}" x2="{at(limit):.1f}" {ends}/>')
    parts.append(_text((left + _WIDTH) / 2, height - 12, across, "middle"))
    return _svg(parts, height)


def heat_map(values: np.ndarray) -> str:
    """A map (rows, columns) of values in [0, 1] as a PNG data URI, one pixel a value: the darker
    the larger, square root scale.
    """
    level = np.sqrt(np.clip(values.astype(np.float64), 0, 1))[..., None]
    white, ink = np.array([250, 250, 247]), np.array([24, 50, 110])
    return f"data:image/png;base64,{base64.b64encode(_png(white + level * (ink - white))).decode()}"


def _png(pixels: np.ndarray) -> bytes:
    """An 8-bit RGB image (rows, columns, 3)."""
    height, width, _ = pixels.shape
    scans = pixels.round().astype(np.uint8).reshape(height, -1)
    raw = b"".join(b"\0" + scan.tobytes() for scan in scans)  # 0: stored as they are
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _range(values: Sequence[float], zero: bool) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low = min(low, 0.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    return low, high + 0.05 * (high - low)


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)


def _axes(
    left: float | None, right: float | None, low: float, high: float, across: str, up: str
) -> str:
    base, end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{end}" y1="{base}" y2="{base}"/>']
    for tick in range(_TICKS + 1):
        value = low + (high - low) * tick / _TICKS
        y = _y(value, low, high)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{value:.3g}", "end"))
        if left is not None and right is not None:
            value = left + (right - left) * tick / _TICKS
            parts.append(_text(_x(value, left, right), base + 16, f"{value:.3g}", "middle"))
    parts.append(_text((_LEFT + end) / 2, _HEIGHT - 8, across, "middle"))
    middle = (_TOP + base) / 2
    parts.append(
        f'<text transform="rotate(-90 12 {middle})" x="12" y="{middle}" text-anchor="middle">'
        f"{escape(up)}</text>"
    )
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(parts: list[str], names: list[str], first: int) -> str:
    keys = "".join(
        f'<span><i class="k{number}"></i>{escape(name)}</span>'
        for number, name in enumerate(names, first)
    )
    return _svg(parts, _HEIGHT) + (f'<p class="key">{keys}</p>' if len(names) > 1 else "")


def _svg(parts: list[str], height: float) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'
