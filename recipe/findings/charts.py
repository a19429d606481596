"""Plots as SVG, small, sharp and in the page's own colours; a point says its name on hover, a table says them all."""

import math
from collections.abc import Sequence

from recipe.findings.parts import Curves, Grid, Scatter, Term
from recipe.findings.words import counted, escaped, shown

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46
NAMED = 1000  # points beyond which names are left out
LISTED = 200  # points in the table of a plot


def scatter(part: Scatter) -> str:
    """A scatter plot."""
    points = [(float(x), float(y)) for x, y in part.points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return "<p>No finite points to plot.</p>"
    xs, ys = zip(*points, strict=True)
    if part.diagonal:
        both = _Axis.of([*xs, *ys])
        across, up = both.on(LEFT, WIDTH - RIGHT), both.on(HEIGHT - BOTTOM, TOP)
    else:
        across, up = _Axis.of(xs).on(LEFT, WIDTH - RIGHT), _Axis.of(ys).on(HEIGHT - BOTTOM, TOP)
    drawn = _frame(part.x, part.y, across, up)
    if part.diagonal:
        low, high = across.low, across.high
        ends = f'x1="{across(low):.1f}" y1="{up(low):.1f}" x2="{across(high):.1f}" y2="{up(high):.1f}"'
        drawn.append(f'<line class="agree" {ends}/>')
    names = part.names if len(part.names) == len(part.points) and len(points) <= NAMED else ()
    for i, (x, y) in enumerate(points):
        words = f"{names[i]}: " if names else ""
        title = escaped(f"{words}{part.x.name} {shown(x)}, {part.y.name} {shown(y)}")
        drawn.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="4"><title>{title}</title></circle>')
    many = counted(len(points), "point")
    return _svg(drawn, f"Scatter plot of {part.y.name} against {part.x.name}, {many}. {part.caption}")


def curves(part: Curves) -> str:
    """A line plot with a legend."""
    lines = {name: (list(map(float, xs)), list(map(float, ys))) for name, (xs, ys) in part.lines.items()}
    all_x = [x for xs, _ in lines.values() for x in xs]
    all_y = [y for _, ys in lines.values() for y in ys if math.isfinite(y)]
    if not all_x or not all_y:
        return "<p>No finite points to plot.</p>"
    across = _Axis.of(all_x, part.logarithmic).on(LEFT, WIDTH - RIGHT)
    up = _Axis.of([0.0, *all_y]).on(HEIGHT - BOTTOM, TOP)
    drawn = _frame(part.x, part.y, across, up)
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        kept = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in kept)
        drawn.append(f'<polyline class="c{i % 6}" points="{path}"/>')
        for x, y in kept:
            title = escaped(f"{name}: {part.x.name} {shown(x)}, {part.y.name} {shown(y)}")
            dot = f'cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"'
            drawn.append(f'<circle class="c{i % 6}" {dot}><title>{title}</title></circle>')
    legend = "".join(f'<li><i class="c{i % 6}"></i>{escaped(name)}</li>' for i, name in enumerate(lines))
    label = f"Curves of {part.y.name} over {part.x.name}. {part.caption}"
    return _svg(drawn, label) + f'<ul class="legend">{legend}</ul>'


def data(part: Scatter | Curves) -> Grid:
    """The numbers of a plot, for those who do not see it.

    >>> points = Scatter("Effects", Term("predicted", ""), Term("actual", ""), [(0.1, 0.2)], ["web"])
    >>> data(points).rows
    [('web', 0.1, 0.2)]
    """
    if isinstance(part, Scatter):
        named = len(part.names) == len(part.points)
        first = Term("point", "As it is called in the plot." if named else "Its place in their order.")
        names = part.names if named else map(str, range(len(part.points)))
        rows = [(name, float(x), float(y)) for name, (x, y) in zip(names, part.points, strict=True)]
    else:
        first = Term("line", "As it is called in the plot.")
        rows = [(name, float(x), float(y)) for name, line in part.lines.items() for x, y in zip(*line, strict=True)]
    caption = part.caption if len(rows) <= LISTED else f"{part.caption}: the first {LISTED} of {len(rows)}"
    return Grid(caption, [first, part.x, part.y], rows[:LISTED])


class _Axis:
    """From data to pixels, linear or logarithmic, with round ticks."""

    def __init__(self, low: float, high: float, logarithmic: bool) -> None:
        self.low, self.high, self.logarithmic = low, high, logarithmic
        self.start, self.end = 0.0, 1.0

    @classmethod
    def of(cls, values: Sequence[float], logarithmic: bool = False) -> "_Axis":
        low, high = min(values), max(values)
        if logarithmic and low > 0:
            return cls(low, high if high > low else low * 2, True)
        margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        return cls(low - margin * (low != 0), high + margin, False)

    def on(self, start: float, end: float) -> "_Axis":
        other = _Axis(self.low, self.high, self.logarithmic)
        other.start, other.end = start, end
        return other

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        at = math.log(value) if self.logarithmic else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.ceil(math.log2(self.low) - 1e-9), math.floor(math.log2(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / 7))
            return [2.0**k for k in range(first, last + 1, step)]
        raw = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(raw))
        step = unit * min((1, 2, 5, 10), key=lambda k: abs(k - raw / unit))
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def _frame(x: Term, y: Term, across: _Axis, up: _Axis) -> list[str]:
    bottom, drawn = HEIGHT - BOTTOM, []
    for tick in up.ticks:
        at = f"{up(tick):.1f}"
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        drawn.append(f'<text x="{LEFT - 7}" y="{at}" dy=".32em" text-anchor="end">{shown(_round(tick))}</text>')
    for tick in across.ticks:
        at = f"{across(tick):.1f}"
        drawn.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{shown(_round(tick))}</text>')
    middle = (TOP + bottom) / 2
    drawn.append(f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{_named(x)}</text>')
    drawn.append(f'<text class="name" x="13" y="{middle}" transform="rotate(-90 13 {middle})">{_named(y)}</text>')
    return drawn


def _named(term: Term) -> str:
    return f"{escaped(term.name)}<title>{escaped(term.meaning)}</title>"


def _round(value: float) -> float:
    return float(f"{value:.10g}") + 0.0


def _svg(drawn: Sequence[str], label: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="plot" role="img" aria-label="{escaped(label)}" {size}>{"".join(drawn)}</svg>'
