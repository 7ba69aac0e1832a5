"""The rows of `edgeqat compare` as a picture, SVG in one file: KL to the float model against
megabytes on disk, both logarithmic. Rows are numbered as in the list beside the points; a hollow
point has a 4-bit KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from edgeqat.compare.rows import FLOAT, KINDS

_LEFT, _TOP, _WIDE, _HIGH, _LIST, _LINE = 64, 40, 460, 380, 330, 17
_COLOURS = {
    "ours": "#1f6fc4", "llama.cpp": "#d9822b", "auto-round": "#3a9b5c", "torchao": "#a04fb0",
}  # fmt: skip
_NEAR, _AWAY = 11, (11, 18, 25, 34)  # pixels from a point to its number
_MARGIN = 0.1  # of the axis of sizes, which is logarithmic
_NARROW_CACHES = ("q4_0",)
_SMALLEST = 1e-4  # nats: below it a point stands on the axis
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#6a6c75}.title{font-size:14px;fill:#1c1d22}"
    ".axis{stroke:#6a6c75}.grid{stroke:#d9d9d2}.number{font-size:10px;fill:#1c1d22}"
)


def picture(comparison: dict[str, Any]) -> str:
    """The text of an SVG file of what compare.json holds."""
    rows = [row for row in comparison["rows"] if row["row"] != FLOAT and "error" not in row]
    height = max(_TOP + _HIGH + 50, _TOP + _LINE * (len(rows) + 1))
    parts = [
        '<rect width="100%" height="100%" fill="#fafaf7"/>',
        _text(_LEFT, 22, f"{comparison['model']}: KL to float against size", "start", "title"),
        *_points(rows),
    ]
    for number, row in enumerate(rows, 1):
        y = _TOP + _LINE * number
        parts.append(_mark(_LEFT + _WIDE + 30, y - 4, row))
        line = f"{number}  {_named(row)}  {row['kl']:.3g}"
        parts.append(_text(_LEFT + _WIDE + 42, y, line, "start"))
    width = _LEFT + _WIDE + 30 + _LIST
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _points(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return [_text(_LEFT + _WIDE / 2, _TOP + _HIGH / 2, "no row has scores", "middle")]
    sizes = [math.log(row["bytes"] / 1e6) for row in rows]
    logs = [math.log10(max(row["kl"], _SMALLEST)) for row in rows]
    left, right = min(sizes) - _MARGIN, max(sizes) + _MARGIN
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high += high == low

    def x(size: float) -> float:
        return _LEFT + _WIDE * (size - left) / (right - left)

    def y(log: float) -> float:
        return _TOP + _HIGH * (high - log) / (high - low)

    base, end = _TOP + _HIGH, _LEFT + _WIDE
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{end}" y1="{base}" y2="{base}"/>']
    for power in range(low, high + 1):
        at = y(power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(_LEFT - 6, at + 4, f"{10.0**power:g}", "end"))
    for tick in range(5):
        size = left + (right - left) * tick / 4
        parts.append(_text(x(size), base + 18, f"{math.exp(size):.3g}", "middle"))
    parts.append(_text((_LEFT + end) / 2, base + 38, "MB on disk", "middle"))
    middle = _TOP + _HIGH / 2
    parts.append(
        f'<text transform="rotate(-90 14 {middle})" x="14" y="{middle}" text-anchor="middle">'
        "KL to float, nats a token</text>"
    )
    places = [(x(size), y(log)) for size, log in zip(sizes, logs, strict=True)]
    parts += [_mark(*place, row) for place, row in zip(places, rows, strict=True)]
    return parts + _numbers(places)


def _numbers(places: Sequence[tuple[float, float]]) -> list[str]:
    """A number beside each point, on the side that is free."""
    taken: list[tuple[float, float]] = [*places]
    parts = []
    for number, (across, down) in enumerate(places, 1):
        ways = [(r * math.cos(a), r * math.sin(a)) for r in _AWAY for a in range(7)]
        free = [
            (across + dx, down + dy)
            for dx, dy in ways
            if all(math.hypot(across + dx - u, down + dy - v) > 10 for u, v in taken)
        ]
        spot = free[0] if free else (across + _NEAR, down)
        taken.append(spot)
        if math.hypot(spot[0] - across, spot[1] - down) > _NEAR + 1:
            ends = f'x1="{across:.1f}" y1="{down:.1f}" x2="{spot[0]:.1f}" y2="{spot[1]:.1f}"'
            parts.append(f'<line class="grid" {ends}/>')
        parts.append(_text(spot[0], spot[1] + 3, str(number), "middle", "number"))
    return parts


def _mark(x: float, y: float, row: dict[str, Any]) -> str:
    kind = KINDS[row["row"]]
    colour = _COLOURS.get(kind.family, "#1c1d22")
    fill = "#fafaf7" if kind.cache in _NARROW_CACHES else colour
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" '
        f'stroke-width="1.6"><title>{escape(_named(row))}: {row["bytes"] / 1e6:.1f} MB, KL '
        f"{row['kl']:.4g}</title></circle>"
    )


def _named(row: dict[str, Any]) -> str:
    """A row as the list names it: ours with its scheme."""
    return f"{row['row']} {row['format']}" if KINDS[row["row"]].family == "ours" else row["row"]


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
