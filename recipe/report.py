"""Reports: solutions and what they really did, as one HTML page that needs nothing else, or as text.

A `Section` is a solved and verified task with what there is to see of it; `html` and `text` say the same. Plots and
thumbnails are PNG images inside the page, and everything that the data say is escaped.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from recipe.run import BEFORE, Measured, Solution, Verification

BLUE, GREY = "#3b82c4", "#8a8f98"  # readable on white and on black


@dataclass(frozen=True)
class Row:
    """A line of a table: a name, a number, and what it stands for.

    Args:
        name: what was measured.
        value: the number, or a mean over retrainings with its standard error.
        kind: "ours" for what the decision really did, "predicted" for what was promised, "" for all else.
    """

    name: str
    value: float | Measured
    kind: str = ""

    @property
    def number(self) -> float:
        """The mean."""
        return self.value.mean if isinstance(self.value, Measured) else self.value

    @property
    def shown(self) -> str:
        """The mean, with its standard error where there is one."""
        return str(self.value) if isinstance(self.value, Measured) else f"{self.value:.4g}"


@dataclass(frozen=True)
class Table:
    """Numbers that compare, with what they measure and which way is better."""

    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True, eq=False)
class Picture:
    """A thumbnail.

    Args:
        pixels: `(height, width)` grey values or `(height, width, 3)` colours, from 0 to 1.
        label: what stands beneath it.
        mark: a second line that stands out, where there is something to remark.
    """

    pixels: Tensor
    label: str
    mark: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Thumbnails in a row, with a caption that says what one sees."""

    caption: str
    pictures: Sequence[Picture]


@dataclass(frozen=True, eq=False)
class Section:
    """A solved and verified task.

    Args:
        title: its name.
        question: what was asked, in a sentence.
        objective: the problem in one line of mathematics.
        solution: from `solve`.
        verification: of that solution, from `verify`.
        unit: what the objective measures, and which way is better.
        tables: further measurements.
        galleries: what was chosen, changed or found.
        before: `(m,)` outputs before; the plot then shows changes instead of outputs.
        output: what an output is, for the axes.
    """

    title: str
    question: str
    objective: str
    solution: Solution
    verification: Verification
    unit: str = "objective"
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    before: Tensor | None = None
    output: str = "output"

    @property
    def method(self) -> dict[str, str]:
        """Estimator and solver with their parameters."""
        record = self.solution.provenance
        return {name: call(record[name]) for name in ("estimator", "solver") if record[name]}

    @property
    def all_tables(self) -> list[Table]:
        """The verification's own table, then the others."""
        return [verification_table(self.verification, self.unit), *self.tables]

    def __str__(self) -> str:
        lines = [self.title, "-" * len(self.title), self.question, f"  {self.objective}"]
        lines += [f"  {name}: {value}" for name, value in self.method.items()]
        width = max(len(row.name) for table in self.all_tables for row in table.rows)
        for table in self.all_tables:
            lines += [table.caption, *(f"  {row.name:<{width}}  {row.shown}" for row in table.rows)]
        return "\n".join(lines)


def verification_table(verification: Verification, caption: str) -> Table:
    """Before, predicted, actual and the baselines of a verification."""
    others = [Row(name, value) for name, value in verification.baselines.items() if name != BEFORE]
    rows = [
        Row(f"before ({BEFORE})", verification.before),
        Row("predicted", verification.predicted, "predicted"),
        Row("actual", verification.actual, "ours"),
        *others,
    ]
    seeds = len(verification.provenance["verification"]["seeds"])
    return Table(f"{caption} · retrained with {seeds} seed{'s' * (seeds != 1)}", rows)


def html(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """One page: introduction, summary, sections.

    Args:
        title: of the page.
        introduction: a paragraph of plain text.
        sections: in the order in which they are shown.

    Returns:
        A document without external resources.
    """
    environment = Environment(loader=PackageLoader("recipe", "."), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    template = environment.get_template("report.html.j2")
    return template.render(
        title=title, introduction=introduction, sections=sections, bar=bar, image=image, plot=plot, facts=facts
    )


def bar(row: Row, table: Table) -> tuple[float, float]:
    """Where the bar of a row starts and how long it is, in percent of the table's range, which contains zero.

    An infinite number goes to the end of the range; NaN has no bar.

    >>> table = Table("", [Row("a", 1.0), Row("b", -3.0)])
    >>> bar(table.rows[0], table), bar(table.rows[1], table)
    ((75.0, 25.0), (0.0, 75.0))
    """
    numbers = [one.number for one in table.rows if math.isfinite(one.number)]
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    if math.isnan(row.number) or high == low:
        return 0.0, 0.0
    start, end = max(low, min(0.0, row.number)), min(high, max(0.0, row.number))
    return round(100 * (start - low) / (high - low), 2), round(100 * (end - start) / (high - low), 2)


def image(picture: Picture) -> str:
    """The thumbnail as a data URI, dark ink on white."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    pixels = picture.pixels.detach().cpu().numpy().clip(0, 1)
    imsave(buffer, pixels, cmap="gray_r", vmin=0, vmax=1, format="png")
    return _data_uri(buffer)


def plot(section: Section) -> str:
    """Predicted against actual, one dot an output, with the line where they agree, as a data URI."""
    from matplotlib.figure import Figure

    predicted, actual = (_points(section, name) for name in ("outputs_predicted", "outputs_actual"))
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot(aspect="equal", adjustable="datalim")
    axes.axline((float(actual[0]), float(actual[0])), slope=1, color=GREY, linewidth=1)
    axes.plot(predicted, actual, "o", color=BLUE, alpha=0.6, markersize=4.5, markeredgewidth=0)
    what = section.output if section.before is None else f"change of the {section.output}"
    axes.set_xlabel(f"predicted {what}", color=GREY)
    axes.set_ylabel(f"actual {what}", color=GREY)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160, transparent=True, format="png")
    return _data_uri(buffer)


def facts(section: Section) -> list[tuple[str, str]]:
    """Where the numbers come from, as pairs of a name and a line of text."""
    record = section.verification.provenance
    seconds = {**record["seconds"], "verify": record["verification"]["seconds"]}
    notes = {f"solver's {name}": _short(value) for name, value in record["notes"].items()}
    setting = record["setting"] or record["verification"]["setting"] or {}
    return [
        ("task", call(record["task"])),
        *((name, call(value)) for name, value in setting.items()),
        *notes.items(),
        ("seeds", str(record["verification"]["seeds"])),
        ("seconds", _pairs({name: f"{value:.2g}" for name, value in seconds.items()})),
        ("versions", _pairs(record["versions"])),
    ]


def call(record: Any) -> str:
    """A summary of a dataclass as it would be written in code.

    >>> call({"type": "CG", "tolerance": 0.1, "iterations": None})
    'CG(tolerance=0.1)'
    """
    if isinstance(record, (list, tuple)):
        return f"[{', '.join(call(value) for value in record)}]"
    if not isinstance(record, Mapping) or "type" not in record:
        return str(record)
    parts = [f"{name}={call(value)}" for name, value in record.items() if name != "type" and value is not None]
    return f"{record['type']}({', '.join(parts)})"


def _points(section: Section, name: str) -> np.ndarray:
    outputs = getattr(section.verification, name).detach().cpu()
    return np.asarray(outputs if section.before is None else outputs - section.before.detach().cpu())


def _pairs(record: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in record.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return _pairs({name: _short(one) for name, one in value.items()})
    numbers: Iterable[Any] = value if isinstance(value, (list, tuple)) else [value]
    shown = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in numbers]
    return ", ".join(shown) if len(shown) <= 6 else f"{len(shown)} values, {shown[0]} to {shown[-1]}"


def _data_uri(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
