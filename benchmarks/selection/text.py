"""SST-2 mixed 1:1 with other text: which tenth should a small transformer read to tell good from bad reviews?

The pool is a `datasets.Dataset` of 1 000 review sentences and as many subjects of mails (Enron) and short messages
(SMS), whose labels, spam or not, say nothing about reviews. Targets are 200 other review sentences, the test split 872
more. The model is a HuggingFace class, configured small, with random weights, trained offline. No text is printed.

Whether EK-FAC or LESS scores, and in how many stages, was chosen on draw 100.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from applications.data_selection import DataSelection
from benchmarks.data import enron, sms, sst2
from benchmarks.selection.mnist_pool import random_subset
from benchmarks.tables import mean, table
from estimators.ekfac import EKFAC
from estimators.less import LESS
from recipe import AdamW, Correct, Greedy, Loss, Retrain, Setting, TopK, solve

DRAWS, SEEDS, HALF, LENGTH, WORDS = range(5), range(2), 1000, 12, 1500
READER_ADAM = AdamW(epochs=12, batch_size=16, lr=2e-3, weight_decay=1e-2)
METHODS: dict[str, tuple[Any, Any]] = {
    "`LESS()`, `TopK()`": (LESS(dimension=256, checkpoints=2), TopK()),
    "`EKFAC()`, `TopK()`": (EKFAC(), TopK()),
    "`EKFAC()`, `Greedy(refit=3)`": (EKFAC(), Greedy(refit=3)),
}


def reader() -> nn.Module:
    """A BERT of one layer, 16 wide, with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LENGTH, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    return BertForSequenceClassification(config)


def other_text() -> tuple[list[str], Tensor]:
    """Subjects of mails and short messages, without what the two sets share."""
    mails, spam = enron()
    subjects = [mail.split("\n", 1)[0].removeprefix("Subject: ").lower() for mail in mails]
    messages, unwanted = sms()
    return [*subjects, *(m.lower() for m in messages)], torch.cat([spam, unwanted])


def encoded(texts: list[str], words: dict[str, int]) -> dict[str, Tensor]:
    """Word numbers `(b, LENGTH)`: 0 pads, 1 is any other word."""
    rows = [[words.get(w, 1) for w in text.split()[:LENGTH]] or [1] for text in texts]
    ids = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    return {"input_ids": ids}  # without a mask, whose checks depend on its values, which many models at once cannot


def pools(draw: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The pool as a `datasets.Dataset`, targets, test split, and which points of the pool are reviews."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(draw)
    reviews, moods = sst2("train")
    others, kinds = other_text()
    order = torch.randperm(len(reviews), generator=generator)
    mixed = torch.randperm(len(others), generator=generator)[:HALF]
    chosen, held = order[:HALF], order[HALF : HALF + 200]
    texts = [reviews[i] for i in chosen] + [others[i] for i in mixed]
    labels = torch.cat([moods[chosen], kinds[mixed]])
    counts: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: -counts[word])[: WORDS - 2]
    words = {word: i + 2 for i, word in enumerate(common)}
    pool = Dataset.from_dict({**{k: t.tolist() for k, t in encoded(texts, words).items()}, "labels": labels.tolist()})
    targets = {**encoded([reviews[i] for i in held], words), "labels": moods[held]}
    dev, truth = sst2("dev")
    test = {**encoded(dev, words), "labels": truth}
    return pool.with_format("torch"), targets, test, torch.arange(2 * HALF) < HALF


def accuracies(draw: int, methods: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Accuracy on other reviews of every way of selecting."""
    pool, targets, test, reviews = pools(draw)
    setting = Setting(reader, pool, targets, READER_ADAM, output=Loss())
    n, size = setting.n, setting.n // 10
    f, task = Retrain(setting, SEEDS), DataSelection(size)
    rows: dict[str, Tensor] = {
        name: solve(task, estimator.fit(setting), solver).decision for name, (estimator, solver) in methods.items()
    }
    rows["random"] = random_subset(torch.ones(n), size, draw)
    rows["lowest loss"] = task.problem(f).baselines["lowest loss"](f)  # type: ignore[operator]
    rows["random of the reviews"] = random_subset(reviews, size, draw)
    rows["all of the pool"] = torch.ones(n)
    found = dict(zip(rows, f.on(test, Correct())(torch.stack(list(rows.values()))).mean(1).tolist(), strict=True))
    shares = {name: round(float(w[reviews].sum() / w.sum()), 2) for name, w in rows.items()}
    print(f"text, draw {draw}: {found}; reviews among the chosen: {shares}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the table."""
    found = [accuracies(draw, METHODS) for draw in DRAWS]
    rows = []
    for name in found[0]:
        rows.append((name, mean([one[name] for one in found]), mean([one[name] - one["random"] for one in found])))
    title = f"SST-2 mixed 1:1 with mail subjects and SMS: accuracy of a tenth of {2 * HALF}, {len(DRAWS)} draws"
    table(title, ("chosen by", "accuracy", "gain over random"), rows)
