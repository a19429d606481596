"""TOFU's measures of a language model that forgot: truth ratio, forget quality and model utility.

    truth ratio      R = mean_i P(wrong_i | q)^(1/|wrong_i|) / P(right | q)^(1/|right|)       a question
    forget quality   p-value of a two-sample Kolmogorov-Smirnov test: are the truth ratios on the forget set those of a
                     model that was trained without it? (Small: told apart. Large: not.)
    model utility    harmonic mean of probability, ROUGE-L recall and max(0, 1 - R), over what must not be forgotten

`P(a | q)^(1/|a|)` is `exp(-loss)` where the loss is averaged over the answer's tokens, as `CrossEntropy` does.

Reference: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024, arXiv:2401.06121.
"""

from collections.abc import Sequence

from scipy import stats
from torch import Tensor


def truth_ratio(right: Tensor, wrong: Tensor) -> Tensor:
    """R of every question, `(b,)`.

    Args:
        right: `(b,)`, mean token loss of a right answer (TOFU paraphrases it).
        wrong: `(b, k)`, those of k wrong answers of the same form.

    >>> import torch
    >>> truth_ratio(torch.tensor([0.0]), torch.tensor([[0.0, 0.0]]))
    tensor([1.])
    """
    if wrong.ndim != 2 or right.shape != wrong.shape[:1]:
        raise ValueError(f"Expected losses (b,) and (b, k); got {tuple(right.shape)} and {tuple(wrong.shape)}.")
    return (-wrong).exp().mean(1) / (-right).exp()


def forget_quality(unlearned: Tensor, retained: Tensor) -> float:
    """The p-value for truth ratios on the forget set of the unlearned model and of one that never saw it.

    >>> import torch
    >>> forget_quality(torch.arange(50.0), torch.arange(50.0))
    1.0
    """
    return float(stats.ks_2samp(unlearned.double().numpy(), retained.double().numpy()).pvalue)


def model_utility(*values: float) -> float:
    """The harmonic mean: zero as soon as one of them is.

    >>> model_utility(0.5, 0.5), model_utility(1.0, 0.0)
    (0.5, 0.0)
    """
    if not values or min(values) < 0:
        raise ValueError(f"Expected values from 0, at least one; got {values}.")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / v for v in values)


def rouge_l(answer: Sequence[object], reference: Sequence[object]) -> float:
    """ROUGE-L recall: the longest common subsequence as a share of the reference.

    >>> rouge_l("the cat sat".split(), "the cat on the mat sat".split())
    0.5
    """
    row = [0] * (len(reference) + 1)
    for token in answer:
        diagonal = 0
        for j, other in enumerate(reference, 1):
            above = row[j]
            row[j] = diagonal + 1 if token == other else max(above, row[j - 1])
            diagonal = above
    return row[-1] / len(reference) if reference else 0.0
