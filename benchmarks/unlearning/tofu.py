"""TOFU on a small GPT trained from scratch: forget one author in a hundred, in twenty, in ten.

    python -m benchmarks.unlearning tofu

Words are tokens; a model learns the questions and answers on invented authors by heart. Deviations from the published
task: a model of 300 000 parameters instead of a pretrained one; right answers are the ones that were learned, not
paraphrases; wrong ones are answers about other authors, since the file has no perturbed ones; utility is measured on
retained authors only. Users with internet find the full sets in `datasets`: `load_dataset("locuslab/TOFU",
"forget10_perturbed")` has paraphrases and perturbed answers.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from applications.unlearning import (
    Deployed,
    DoNothing,
    FineTune,
    GradAscent,
    GradDiff,
    ParameterUpdate,
    RetrainFromScratch,
    of_group,
)
from applications.unlearning.tofu import forget_quality, model_utility, rouge_l, truth_ratio
from benchmarks.data import tofu
from benchmarks.estimators.gpt import GPT
from benchmarks.tables import table
from recipe import AdamW, Loss, Setting
from recipe.setting import Parameters

IGNORED, PAD, END = -100, 0, 1


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        authors: of the data, twenty questions each.
        forget: how many authors to forget, one run each.
        epochs: of the training.
        width: of the model.
        wrong: wrong answers a question.
        generated: answers to write out for ROUGE.
        length: of question and answer together, in words.
        estimator: of a step in parameters, such as `EKFAC(damping=1e-3)`; minutes on a core for this model, so that
            none is taken by default.
    """

    authors: int = 100
    forget: tuple[int, ...] = (1, 5, 10)
    epochs: int = 30
    width: int = 64
    wrong: int = 5
    generated: int = 100
    length: int = 64
    estimator: Any = None


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens: `(rows, T)` inputs, next tokens with -100 outside the answer, and of each row its author."""

    words: list[str]
    inputs: Tensor
    labels: Tensor
    authors: Tensor
    questions: list[list[int]]
    answers: list[list[int]]


def read(size: Size) -> Corpus:
    """The first authors of TOFU."""
    rows = [row for row in tofu() if row["author"] < size.authors]
    split = [(_words(row["question"]), _words(row["answer"])) for row in rows]
    words = ["<pad>", "<end>", *sorted({w for pair in split for part in pair for w in part})]
    index = {w: i for i, w in enumerate(words)}
    questions, answers = ([[index[w] for w in pair[k]] for pair in split] for k in (0, 1))
    inputs, labels = encode(questions, answers, size.length)
    return Corpus(words, inputs, labels, torch.tensor([row["author"] for row in rows]), questions, answers)


def encode(questions: list[list[int]], answers: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Questions and answers as inputs and next tokens, cut at `length`."""
    inputs = torch.full((len(questions), length), PAD)
    labels = torch.full((len(questions), length), IGNORED)
    for i, (q, a) in enumerate(zip(questions, answers, strict=True)):
        text = [*q, *a, END][: length + 1]
        inputs[i, : len(text) - 1] = torch.tensor(text[:-1])
        first = min(len(q) - 1, length - 1)
        labels[i, first : len(text) - 1] = torch.tensor(text[first + 1 :])
    return inputs, labels


def setting_of(corpus: Corpus, size: Size) -> Setting:
    """The model on everything."""
    data = (corpus.inputs, corpus.labels)
    algorithm = AdamW(epochs=size.epochs, batch_size=20, lr=3e-3, schedule="cosine")
    model = lambda: GPT(len(corpus.words), size.length, size.width, heads=4, blocks=2)  # noqa: E731
    return Setting(model, data, tuple(t[:2] for t in data), algorithm, output=Loss())


def losses(setting: Setting, theta: Parameters, data: tuple[Tensor, Tensor]) -> Tensor:
    """Mean token losses `(b,)`."""
    with torch.no_grad():
        parts = zip(data[0].split(100), data[1].split(100), strict=True)
        return torch.cat([setting.losses(theta, part) for part in parts])


def ratios(setting: Setting, theta: Parameters, corpus: Corpus, rows: Tensor, size: Size) -> Tensor:
    """Truth ratios of questions; wrong answers are those of other authors, the same for every model."""
    draw = torch.Generator().manual_seed(0)
    right = losses(setting, theta, (corpus.inputs[rows], corpus.labels[rows]))
    wrong = []
    for _ in range(size.wrong):
        others = [_other(corpus, int(row), draw) for row in rows]
        data = encode([corpus.questions[int(r)] for r in rows], [corpus.answers[o] for o in others], size.length)
        wrong.append(losses(setting, theta, data))
    return truth_ratio(right, torch.stack(wrong, 1))


def utility(setting: Setting, theta: Parameters, corpus: Corpus, rows: Tensor, size: Size) -> float:
    """On retained authors: probability, ROUGE-L and truth ratio."""
    probability = (-losses(setting, theta, (corpus.inputs[rows], corpus.labels[rows]))).exp().mean()
    ratio = (1 - ratios(setting, theta, corpus, rows, size)).clamp_min(0).mean()
    written = [answer(setting, theta, corpus.questions[int(r)], size.length) for r in rows[: size.generated]]
    pairs = zip(written, rows[: size.generated], strict=True)
    rouge = [rouge_l(text, corpus.answers[int(r)]) for text, r in pairs]
    return model_utility(float(probability), sum(rouge) / len(rouge), float(ratio))


def answer(setting: Setting, theta: Parameters, question: list[int], length: int) -> list[int]:
    """The most probable next token, again and again."""
    text = list(question)
    with torch.no_grad():
        while len(text) < length and (len(text) == len(question) or text[-1] != END):
            inputs = torch.tensor([text])
            text.append(int(setting.predict(theta, (inputs, inputs))[0, -1].argmax()))
    return [token for token in text[len(question) :] if token != END]


def main(size: Size = Size()) -> list[tuple[str, ...]]:
    """The table; gives its rows back."""
    corpus = read(size)
    setting = setting_of(corpus, size)
    deployed = Deployed.trained(setting)
    fitted = deployed if size.estimator is None else deployed.fitted(size.estimator)
    rows: list[tuple[str, ...]] = []
    for count in size.forget:
        forget = of_group(corpus.authors, *range(size.authors - count, size.authors))
        keep = deployed.kept(forget)
        rest = keep.nonzero().squeeze(1)
        held = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))[: 2 * size.generated]]
        retrained = RetrainFromScratch().unlearn(deployed, keep, seed=1)
        truth = ratios(setting, retrained, corpus, forget, size)
        methods: dict[str, Any] = {
            "do nothing": DoNothing(), "retrained, another seed": RetrainFromScratch(),
            "gradient ascent": GradAscent(epochs=5, lr=3e-2, batch_size=20),
            "gradient difference": GradDiff(epochs=5, lr=3e-2, batch_size=20),
            "fine-tuning": FineTune(replace(setting.algorithm, epochs=3, lr=1e-3)),
        }  # fmt: skip
        if size.estimator is not None:
            methods["a step in parameters"] = ParameterUpdate()
        for name, method in methods.items():
            theta = method.unlearn(fitted, keep, 0)
            quality = forget_quality(ratios(setting, theta, corpus, forget, size), truth)
            loss = losses(setting, theta, (corpus.inputs[forget], corpus.labels[forget])).mean()
            useful = utility(setting, theta, corpus, held, size)
            row = (f"{count} of {size.authors}", name, f"{quality:.1e}", f"{float(loss):.2f}", f"{useful:.3f}")
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    table("TOFU, a GPT from scratch", ("authors", "method", "forget quality (p)", "forget loss", "utility"), rows)
    return rows


def _other(corpus: Corpus, row: int, draw: torch.Generator) -> int:
    while True:
        other = int(torch.randint(len(corpus.answers), (1,), generator=draw))
        if corpus.authors[other] != corpus.authors[row]:
            return other


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ,").replace(".", " .").replace("?", " ?").split()
