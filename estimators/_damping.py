"""The damping of a curvature that is solved as it is, where nobody says which."""

from estimators._draws import generator, signs
from recipe.calculus import Curvature, Operator, Point
from recipe.inverses import DataInf, Inverse, Woodbury
from recipe.notes import note
from recipe.setting import Setting

SHARE, PROBES = 0.1, 8  # of the mean eigenvalue; random signs that find it


def damped(curvature: Curvature, inverse: Inverse, point: Point, damping: float | None) -> Operator:
    """A curvature at a point, with its damping.

    Args:
        curvature: to take.
        inverse: of it; `DataInf` and `Woodbury` look at gradients alone, and choose for themselves.
        point: where.
        damping: added to the diagonal; None: nothing where there is weight decay, else a tenth of the mean eigenvalue,
            `tr(F) / p = E[v^T F v] / p` for random signs v (Hutchinson, "A stochastic estimator of the trace of the
            influence matrix for Laplacian smoothing splines", 1990).
    """
    if damping is not None:
        return curvature.at(point, damping)
    bare = curvature.at(point, 0.0)
    if isinstance(inverse, (DataInf, Woodbury)):
        return bare
    if point.setting.algorithm.objective.l2:
        note(damping=0.0)
        return bare
    probes = signs((PROBES, bare.p), generator("trace", point.number), point.theta)
    chosen = SHARE * max(0.0, float((probes * bare.product(probes)).mean()))
    note(damping=chosen)
    return curvature.at(point, chosen)


def asked(setting: Setting, damping: float | None) -> float:
    """A damping that stands for it where only the cost is asked: solves of a singular matrix would not end."""
    return damping if damping is not None else 0.0 if setting.algorithm.objective.l2 else 1.0
