"""Scores from elsewhere: a matrix that another library computed becomes a datamodel of ours.

Libraries agree neither on the orientation of a score matrix, nor on its sign, nor on its scale. A `Convention` says
what the numbers of one of them mean; `from_scores` turns them into `effects[j, i]`, the predicted change of output j,
in its own unit, as the weight of point i goes from 0 to 1. With `H` the Hessian of the *mean* training loss, `g_i` the
gradient of the loss of point i and `f_j` what is measured on target j, a "helpful is positive" score is

    s[j, i]  =  grad f_j^T (H + l2)^-1 g_i,        so        effects[j, i]  =  -s[j, i] / n,

whether `f_j` is a loss or a margin: the sign belongs to the gradient of the training loss, not to what is measured. (It
leaves out the shift of the regulariser, the `l2 theta` of `Influence`.) Scores without a unit keep their ratios:
they are divided by n times their root mean square, a nominal size, and wait for `calibrated(f_hat, f, subsets)`.

| convention         | rows            | effect | unit | where that is to be seen                                      |
| ------------------ | --------------- | ------ | ---- | ------------------------------------------------------------- |
| `KRONFLUENCE`      | targets         | -s / n | yes  | `factor/config.py`: lambda over the number of examples        |
| `PYDVL`            | targets         | -s / n | yes  | `influence/torch`, mode "up"; direct and iterative solvers    |
| `CAPTUM_INFLUENCE` | targets         | -s     | yes  | `_core/influence_function.py`: `H` is that of the *sum*       |
| `CAPTUM_TRACIN`    | targets         | -s     | no   | `_core/tracincp.py`: gradients times learning rates, summed   |
| `DATTRI_INFLUENCE` | training points | -s / n | yes  | `algorithm/influence_function.py`: explicit and CG, one batch |
| `DATTRI_TRACIN`    | training points | -s     | no   | `algorithm/tracin.py`: gradients times weights, summed        |
| `DATTRI_TRAK`      | training points | +s     | no   | `algorithm/trak.py`: the kernel is not weighted               |
| `TRAK`             | training points | +s     | no   | `score_computers.py`: divided by the kernel's mean entry      |
| `BERGSON`          | training points | +s     | no   | `data.py::load_scores_loss_signed`: proponents are negative   |
| `BERGSON_MAGIC`    | training points | +s     | yes  | the same loader; the derivative of the loss in the weight     |

All but bergson's were compared with retraining (kronfluence 1.0.1, pyDVL 0.10.0, captum 0.9.0, dattri 0.3.0, traker
0.3.2; logistic regression, n = 80, l2 = .01 as damping). True change by leaving one point out per converted effect, and
their correlation: pyDVL direct, captum naive, dattri explicit and CG 1.10 and .997, as `Influence` has, which is a
tangent too; kronfluence K-FAC 1.01 and .97, EK-FAC .86 and .96; correlation alone: traker and dattri TRAK .94, TracIn
.69. Their scale was off for EK-FAC of pyDVL (.17) and of dattri (.06), the diagonal strategy of kronfluence (.31), and
dattri's explicit solver over four batches, which adds up four inverses (.21): pass these with
`replace(convention, scaled=False)` and calibrate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe.datamodel import LinearDatamodel, Origin
from recipe.setting import Setting


@dataclass(frozen=True)
class Convention:
    """What the numbers of a score matrix mean.

    Args:
        name: of the library and method, for messages.
        targets_first: rows are targets and columns training points; otherwise the other way round.
        sign: +1 where a positive score raises what is measured as the point joins, -1 where it lowers it ("helpful is
            positive", for a loss).
        over_n: scores are n times too large: those of influence with the Hessian of the mean loss.
        scaled: values have a unit; otherwise only their ratios mean something.

    Example:
        >>> Convention("my own", targets_first=False, sign=-1, over_n=True).effects(torch.tensor([[2.0], [4.0]]))
        tensor([[-1., -2.]])
    """

    name: str
    targets_first: bool
    sign: int
    over_n: bool = False
    scaled: bool = True

    def effects(self, scores: Any) -> Tensor:
        """Scores, a tensor, an array or a memory map, as effects `(m, n)` in memory."""
        t = scores if isinstance(scores, Tensor) else torch.from_numpy(np.array(scores))
        t = t if self.targets_first else t.T
        n = t.shape[1]
        if not self.scaled:
            return self.sign * t / (n * t.square().mean().sqrt())
        return self.sign * t / n if self.over_n else self.sign * t

    def shape(self, m: int, n: int) -> tuple[int, int]:
        """The shape of the scores of n training points for m outputs."""
        return (m, n) if self.targets_first else (n, m)

    def __str__(self) -> str:
        return f"{self.name}, {'targets x training points' if self.targets_first else 'training points x targets'}"


KRONFLUENCE = Convention("kronfluence", targets_first=True, sign=-1, over_n=True)
PYDVL = Convention("pyDVL", targets_first=True, sign=-1, over_n=True)
CAPTUM_INFLUENCE = Convention("captum's influence functions", targets_first=True, sign=-1)
CAPTUM_TRACIN = Convention("captum's TracInCP", targets_first=True, sign=-1, scaled=False)
DATTRI_INFLUENCE = Convention("dattri's influence functions", targets_first=False, sign=-1, over_n=True)
DATTRI_TRACIN = Convention("dattri's TracIn", targets_first=False, sign=-1, scaled=False)
DATTRI_TRAK = Convention("dattri's TRAK", targets_first=False, sign=1, scaled=False)
TRAK = Convention("traker", targets_first=False, sign=1, scaled=False)
BERGSON = Convention("bergson, by load_scores_loss_signed", targets_first=False, sign=1, scaled=False)
BERGSON_MAGIC = Convention("bergson's MAGIC, by load_scores_loss_signed", targets_first=False, sign=1)


def from_scores(
    scores: Any, convention: Convention, setting: Setting, outputs: Tensor | None = None
) -> LinearDatamodel:
    """The datamodel behind a score matrix that another library computed.

    Args:
        scores: a tensor, an array or a memory map, oriented as the convention says.
        convention: what its numbers mean, for example `KRONFLUENCE`.
        setting: what the scores are about: its universe and targets, in the order of the scores, and what is measured.
        outputs: `(m,)` of the model trained on all points, so that predictions are levels; without it they are changes
            from there, and `f_hat(1)` is 0.

    Returns:
        A datamodel `(n,) -> (m,)`. Of a convention without a unit, pass it to `calibrated` before its values count.

    Raises:
        ValueError: scores of another shape or orientation, NaN among them, or outputs that are not `(m,)`.

    Example:
        >>> from recipe import Newton
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, (data[0][:4], data[1][:4]), Newton(l2=0.1))
        >>> f_hat = from_scores(torch.ones(20, 4), DATTRI_INFLUENCE, setting)
        >>> f_hat(torch.ones(20) - torch.eye(20)[3])  # one helpful point less
        tensor([0.0500, 0.0500, 0.0500, 0.0500])
    """
    _check_shape(tuple(scores.shape), convention, setting)
    effects = convention.effects(scores).to(setting.device, setting.dtype)
    if not effects.isfinite().all():
        raise ValueError(
            f"{int((~effects.isfinite()).sum())} scores are NaN or infinite. Look at the solver behind them: conjugate "
            "gradients past convergence and inverses without damping end like that."
        )
    level = torch.zeros(setting.m).to(effects) if outputs is None else outputs.detach().to(effects)
    if level.shape != (setting.m,):
        raise ValueError(f"Expected the outputs ({setting.m},) of the trained model; got {tuple(level.shape)}.")
    everything = torch.ones(()).to(effects).expand(setting.n)
    f_hat = LinearDatamodel(level, effects, at=everything, output_shape=setting.output_shape)
    f_hat.origin = Origin(None, setting, None, float("nan"))
    return f_hat


def _check_shape(shape: tuple[int, ...], convention: Convention, setting: Setting) -> None:
    m, n = setting.m, setting.n
    expected = convention.shape(m, n)
    if shape == expected:
        return
    remedy = "Score the universe and the targets of this setting, in its order."
    if shape == expected[::-1]:
        remedy = "They are the other way round: pass `scores.T`, or the convention that fits."
    raise ValueError(
        f"Scores of {convention}, must have the shape {expected} for m={m} outputs of n={n} training points; got "
        f"{shape}. {remedy}"
    )
