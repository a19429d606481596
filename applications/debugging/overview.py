"""An overview of a model through its data: every prediction to browse, and the answers to other questions before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from applications.debugging.blame import Blame, blame_each, predictions
from recipe import batch as batches
from recipe.datamodel import OutputFunction
from recipe.findings import Examples, Finding, Images, Report, Rows, Scatter, Term, Texts
from recipe.findings.examples import check_examples
from recipe.lds import score
from recipe.outputs import TopMargin
from recipe.record import versions


@dataclass(frozen=True, eq=False)
class Checked:
    """Predicted and actual outputs on subsets of the training data: how far to believe the rest.

    Args:
        predicted: `(r, m)`.
        actual: `(r, m)`, by retraining.

    Raises:
        ValueError: other shapes, or fewer than three subsets.
    """

    predicted: Tensor
    actual: Tensor

    def __post_init__(self) -> None:
        if self.predicted.shape != self.actual.shape or self.actual.ndim != 2 or len(self.actual) < 3:
            raise ValueError(
                "Expected predicted and actual outputs (r, m) on at least three subsets; got "
                f"{tuple(self.predicted.shape)} and {tuple(self.actual.shape)}."
            )

    def to_pandas(self) -> Any:
        """A row an output and subset."""
        import pandas as pd

        r, m = self.actual.shape
        rows = {"subset": torch.arange(r).repeat_interleave(m).numpy(), "output": torch.arange(m).repeat(r).numpy()}
        return pd.DataFrame({**rows, "predicted": self.predicted.reshape(-1), "actual": self.actual.reshape(-1)})

    def finding(self, points: Examples | None = None, targets: Examples | None = None, shown: int = 800) -> Finding:
        """A section of a report; at most `shown` dots."""
        found = score(self.predicted.double(), self.actual.double()[None])
        step = max(1, -(-self.actual.numel() // shown))
        moved = (t - t.mean(0) for t in (self.predicted, self.actual))
        dots = zip(*(t.reshape(-1)[::step].tolist() for t in moved), strict=True)
        x = Term("predicted change", "Of an output on a random subset, from its mean over the subsets; a dot for each.")
        y = Term("actual change", "The same by retraining on that subset.")
        return Finding(
            "How far to believe this",
            "Does the datamodel predict what retraining does?",
            f"On {len(self.actual)} random subsets, predictions of {self.actual.shape[1]} outputs follow retraining "
            f"with an LDS of {found.mean:.2f}; the actual change is {found.slope:.2f} times the predicted one.",
            [Scatter("Predicted against actual", x, y, list(dots))],
            ["An LDS below about 0.3: read what follows as guesses, and test each."] if found.mean < 0.3 else (),
            frame=self.to_pandas,
        )


def overview(
    f_hat: OutputFunction,
    points: Examples,
    targets: Examples,
    answers: Mapping[str, Any] | None = None,
    *,
    title: str = "A model, through its data",
    introduction: str = "",
    chosen: Sequence[int] | None = None,
    k: int = 10,
    checked: Checked | None = None,
) -> Report:
    """Every prediction with its helpful and harmful points, and what else was found, as one report.

    Args:
        f_hat: the datamodel.
        points: how to show training points.
        targets: how to show targets.
        answers: answers of this package by any name, or findings, each shown as a section before the predictions.
        title: of the page.
        introduction: a paragraph.
        chosen: which targets to show; default all.
        k: how many points of each kind.
        checked: predictions on random subsets beside retraining.

    Raises:
        ValueError: examples of other numbers than the datamodel has.
    """
    check_examples(points, f_hat.n, "training points")
    check_examples(targets, f_hat.output_shape[0], "targets")
    targets = _with_predictions(targets, f_hat)
    which = range(f_hat.output_shape[0]) if chosen is None else chosen
    found: dict[str, Any] = {"How far to believe this": checked} if checked else {}
    found.update(answers or {})
    each = blame_each(f_hat, which, k)
    browse = Finding(
        "Predictions",
        "Which training data does each prediction rest on?",
        f"{len(each)} predictions, each with the {k} training points that help and harm it most.",
        [predictions(f_hat, each, points, targets)],
        frame=lambda: _frame(each),
    )
    findings = [_finding(answer, points, targets) for answer in found.values()]
    return Report(title, introduction, [*findings, browse], _facts(f_hat))


def _with_predictions(targets: Examples, f_hat: OutputFunction) -> Examples:
    """Beside labels in numbers what the model predicts, where the outputs are margins of that."""
    setting = f_hat.setting
    if setting is None or not isinstance(setting.output, TopMargin) or not isinstance(targets, Images | Texts | Rows):
        return targets
    if targets.predicted is not None or not isinstance(targets.labels, Tensor):
        return targets
    return replace(targets, predicted=batches.labels(setting.probe).cpu())


def _frame(each: Sequence[Blame]) -> Any:
    """What helps and harms many predictions: a row a target and point."""
    import pandas as pd

    frames = [found.to_pandas().assign(target=found.targets[0]) for found in each]
    return pd.concat(frames, ignore_index=True)[["target", "side", "rank", "point", "effect"]]


def _finding(answer: Any, points: Examples, targets: Examples) -> Finding:
    """The section of an answer, given the examples that it shows."""
    found: Finding = answer if isinstance(answer, Finding) else answer.finding(points, targets)
    return found


def _facts(f_hat: OutputFunction) -> dict[str, str]:
    facts = {"training points": str(f_hat.n), "outputs": str(f_hat.m)}
    if f_hat.origin is not None:
        facts |= {"estimator": str(f_hat.origin.estimator), "seconds to fit": f"{f_hat.origin.seconds:.3g}"}
        facts |= {"algorithm": str(f_hat.origin.setting.algorithm), "output": str(f_hat.origin.setting.output)}
    return facts | {"versions": ", ".join(f"{name} {version}" for name, version in versions().items())}
