"""A grouped bar chart in SVG, by hand: a benchmark should not need a plotting library. Pure; called by `report`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _BAR, _GAP, _TOP = 900, 290, 15, 26, 50
_OURS, _CEILING, _OTHERS = "#2563eb", "#9ca3af", "#f59e0b"


@dataclass(frozen=True, slots=True)
class Series:
    """One side's values, one a group; 0 is left out."""

    title: str
    values: Sequence[float]


def bars_svg(title: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """Return horizontal bars, a group a cell; each group has a scale of its own."""
    parts, y = [], _TOP
    for index, group in enumerate(groups):
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(group)}</text>')
        shown = [(one.title, one.values[index]) for one in series if one.values[index]]
        parts += _group(shown, y + 6)
        y += 6 + _BAR * len(shown) + _GAP
    size = f'width="{_WIDTH}" height="{y}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    background = '<rect width="100%" height="100%" fill="white"/>'
    caption = f'<text x="10" y="22" font-size="16">{escape(title)}</text>'
    return "\n".join([head, background, caption, *parts, "</svg>"])


def _group(shown: Sequence[tuple[str, float]], y: int) -> Iterator[str]:
    most = max((value for _, value in shown), default=1.0)
    for row, (title, value) in enumerate(sorted(shown, key=lambda one: -one[1])):
        top, width = y + row * _BAR, (_WIDTH - _LABELS - 70) * value / most
        yield f'<text x="{_LABELS - 8}" y="{top + 11}" text-anchor="end">{escape(title)}</text>'
        yield f'<rect x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR - 3}" fill="{_colour(title)}"/>'
        yield f'<text x="{_LABELS + width + 5:.1f}" y="{top + 11}">{value:.0f}</text>'


def _colour(title: str) -> str:
    if title.startswith("Model Endpoint"):
        return _OURS
    return _CEILING if title.startswith("bare loop") else _OTHERS
