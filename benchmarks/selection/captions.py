"""Emoji with captions, 40 % of them wrong: which third should a small CLIP train on?

An open_clip model is built from a config and trained from scratch, offline. Pool: 900 emoji in Google's drawing style
with their names; 40 % of the names are exchanged among each other. Targets: 150 other emoji with right names; test: the
same as the targets' kind, 200 more. Subcategories are not split between the parts.

The loss is the contrastive one against frozen reference embeddings (`recipe/contrastive.py`), those of a model trained
on the noisy pool with the coupled loss: against them it is additive over examples, so that a datamodel of it exists.
Measured is retrieval among the test emoji: how often the right caption is the nearest one, and among the nearest ten.
"CLIP score" is DataComp's own filter: the pairs that the model trained on the noisy pool finds most alike.

Users with internet pass their own pairs instead: `datasets.load_dataset("webdataset", data_files="pool/*.tar")` and a
`collate` that makes `(pixels, tokens, labels)` of its samples.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from applications.data_selection import DataSelection
from benchmarks.data import emoji
from benchmarks.selection.mnist_pool import random_subset
from benchmarks.tables import mean, table
from estimators.tracin import TracIn
from recipe import AdamW, Contrastive, Greedy, ImageText, Loss, Retrain, Setting, TopK, solve

DRAWS, SEEDS, POOL, TARGETS, TEST, SIZE, WRONG = range(5), range(2), 900, 200, 300, 400, 0.4
WIDTH, LENGTH, WORDS, SCALE = 32, 8, 800, 10.0
CLIP_ADAM = AdamW(epochs=20, batch_size=50, lr=2e-3, weight_decay=1e-2)
METHODS: dict[str, tuple[Any, Any]] = {
    "`TracIn()`, `TopK()`": (TracIn(checkpoints=3), TopK()),
    "`TracIn()`, `Greedy(refit=3)`": (TracIn(checkpoints=3), Greedy(refit=3)),
}


def clip() -> nn.Module:
    """open_clip's own model, one transformer layer on each side."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=1, width=WIDTH, head_width=16, mlp_ratio=2.0, patch_size=8, image_size=32)
    words = CLIPTextCfg(context_length=LENGTH, vocab_size=WORDS, width=WIDTH, heads=2, layers=1, mlp_ratio=2.0)
    model = CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=words)
    model.logit_scale.requires_grad_(False)  # the loss has its own
    return ImageText(model)


def tokens(names: list[str], vocabulary: dict[str, int]) -> Tensor:
    """Word numbers `(b, LENGTH)`; the largest number ends a caption, which is where open_clip reads it."""
    rows = []
    for name in names:
        row = [vocabulary.get(word, 1) for word in name.lower().split()[: LENGTH - 1]] + [WORDS - 1]
        rows.append(row + [0] * (LENGTH - len(row)))
    return torch.tensor(rows)


def pairs(draw: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Pool, targets and test as `(pixels, tokens, index)`, and which captions of the pool are wrong."""
    images, about = emoji()
    generator = torch.Generator().manual_seed(draw)
    kinds = sorted({one["subcategory"] for one in about})
    order = [kinds[i] for i in torch.randperm(len(kinds), generator=generator)]
    shuffled = torch.randperm(len(about), generator=generator).tolist()
    by_kind = sorted(shuffled, key=lambda i: order.index(about[i]["subcategory"]))
    test, targets, pool = by_kind[:TEST], by_kind[TEST : TEST + TARGETS], by_kind[TEST + TARGETS :]
    pool = [pool[i] for i in torch.randperm(len(pool), generator=generator)[:POOL]]
    names = [one["cldr_name"] or one["short_name"] for one in about]
    counts: dict[str, int] = {}
    for i in pool:
        for word in names[i].lower().split():
            counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: -counts[word])[: WORDS - 3]
    vocabulary = {word: i + 2 for i, word in enumerate(common)}
    wrong = torch.randperm(POOL, generator=generator)[: int(WRONG * POOL)]
    captions = torch.arange(POOL)
    captions[wrong] = wrong.roll(1)
    mark = torch.zeros(POOL, dtype=torch.bool).index_fill(0, wrong, True)

    def part(index: list[int], named: list[int]) -> tuple[Tensor, ...]:
        return images["google"][index] - 0.5, tokens([names[i] for i in named], vocabulary), torch.tensor(index)

    return part(pool, [pool[i] for i in captions.tolist()]), part(targets, targets), part(test, test), mark


def coupled(model: nn.Module, pool: tuple[Tensor, ...], epochs: int = 20) -> nn.Module:
    """Train with CLIP's own loss, which couples the examples of a batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for index in torch.randperm(len(pool[0])).split(50):
            z = model(pool[0][index], pool[1][index])
            u, v = F.normalize(z[:, :WIDTH], dim=1), F.normalize(z[:, WIDTH:], dim=1)
            logits, own = SCALE * u @ v.T, torch.arange(len(index))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def retrieval(f: Retrain, weights: Tensor, pairs: tuple[Tensor, ...], k: int) -> float:
    """How often the right caption is among the k nearest to an image, the mean over seeds."""
    parameters = f.parameters(weights)
    hits = []
    for seed in range(len(f.seeds)):
        with torch.no_grad():
            z = f.setting.predict({name: t[seed] for name, t in parameters.items()}, pairs)
        alike = F.normalize(z[:, :WIDTH], dim=1) @ F.normalize(z[:, WIDTH:], dim=1).T
        hits.append(float((alike.topk(k, 1).indices == torch.arange(len(z))[:, None]).any(1).float().mean()))
    return sum(hits) / len(hits)


def measured(draw: int, methods: dict[str, tuple[Any, Any]]) -> dict[str, tuple[float, float, float]]:
    """Retrieval at 1 and at 10, and the share of wrong captions, of every way of selecting."""
    pool, targets, test, wrong = pairs(draw)
    torch.manual_seed(draw)
    first = coupled(clip(), pool)
    with torch.no_grad():
        z = first(pool[0], pool[1])
    loss = Contrastive(z[:, :WIDTH], z[:, WIDTH:], SCALE)
    setting = Setting(clip, pool, targets, CLIP_ADAM, loss=loss, output=Loss())
    task, f = DataSelection(SIZE), Retrain(setting, SEEDS)
    score = (F.normalize(z[:, :WIDTH], dim=1) * F.normalize(z[:, WIDTH:], dim=1)).sum(1)
    rows = {name: solve(task, estimator.fit(setting), solver).decision for name, (estimator, solver) in methods.items()}
    rows["random"] = random_subset(torch.ones(POOL), SIZE, draw)
    rows["CLIP score (DataComp's filter)"] = task.subset(POOL).best(score)
    rows["all of the pool"] = torch.ones(POOL)
    rows["random of the right captions"] = random_subset(~wrong, SIZE, draw)
    f(torch.stack(list(rows.values())))  # trains them together
    found = {
        name: (retrieval(f, w, test, 1), retrieval(f, w, test, 10), float(w[wrong].sum() / w.sum()))
        for name, w in rows.items()
    }
    print(f"captions, draw {draw}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the table."""
    found = [measured(draw, METHODS) for draw in DRAWS]
    rows = [(name, *(mean([one[name][k] for one in found]) for k in range(3))) for name in found[0]]
    title = f"Emoji CLIP, 40 % of the captions wrong: {SIZE} of {POOL}, {len(DRAWS)} draws"
    table(title, ("chosen by", "right caption nearest", "among the nearest ten", "wrong among the chosen"), rows)
