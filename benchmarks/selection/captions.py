"""Emoji with captions, 40 % of them wrong: which 60 % should a small CLIP train on?

An open_clip model is built from a config and trained from scratch, offline. Pool: 900 emoji, each in two drawing styles
(a crawled pool too has the same thing more than once), with their names; of all 1 800 pairs 40 % have their names
exchanged among each other. Test: 400 other emoji in both styles, drawn at random, so that some share words and looks
with the pool (man, woman, person); the same test for every choice.

CLIP's loss couples the examples of a batch. For attribution each pair is scored against frozen reference embeddings
instead, those of the model looked at (`recipe/contrastive.py`): against them the loss is additive over pairs, so that a
datamodel of it exists around that model. The pairs are its targets too: it predicts of each pair the loss that it would
have, had the model not trained on it, and the pairs of lowest held-out loss are chosen. A wrong caption that the model
has learned by heart has a low loss by nothing but its own presence.

The models looked at, two seeds, train on all pairs for eight epochs. In two stages, two more train on what is chosen
then, and the sum of both scores decides. CLIP score, DataComp's own filter, is how alike these same models find a pair,
in one stage as published and in two, and the loss filter takes their contrastive loss.

Chosen pairs then train new models from scratch with CLIP's own, coupled loss, as many steps for every choice
(DataComp's rule). Measured is retrieval among the test emoji: how often the right caption of 400 is the nearest one to
an image, and among the nearest ten.

How long the models looked at train, and OWN, were chosen on the draws 100 and 101, by how well right captions are told
from wrong ones. The size is the share of right captions.

Users with internet pass their own pairs instead: `datasets.load_dataset("webdataset", data_files="pool/*.tar",
split="train")` and a `collate` that makes `(pixels, tokens, index)` of its samples.
"""

import re
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from applications.data_selection import DataSelection
from benchmarks.data import emoji
from benchmarks.selection.mnist_pool import random_subset
from benchmarks.tables import mean, table
from recipe import AdamW, Contrastive, ImageText, Loss, Setting, calculus

DRAWS, SEEDS, EMOJI, TEST, SIZE, WRONG = range(5), range(1), 900, 400, 0.6, 0.4
WIDTH, LENGTH, WORDS, SCALE, BATCH, EPOCHS = 32, 12, 800, 10.0, 50, 20
MODELS, EARLY = 2, 8  # that look at the pool, and for how many epochs they train
OWN = 3.0  # nats a unit of the effect of a pair on itself: the empirical Fisher matrix leaves the unit open
OURS = "predicted held-out loss, in two stages"
Pairs = tuple[Tensor, ...]  # pixels, tokens, index
Judge = Callable[[Pairs, nn.Module, Tensor], Tensor]  # of a pool, by a model that trained on the chosen `(n,)`


def clip() -> nn.Module:
    """open_clip's own model, one transformer layer on each side."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=1, width=WIDTH, head_width=16, mlp_ratio=2.0, patch_size=8, image_size=32)
    words = CLIPTextCfg(context_length=LENGTH, vocab_size=WORDS, width=WIDTH, heads=2, layers=1, mlp_ratio=2.0)
    model = CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=words)
    model.logit_scale.requires_grad_(False)  # the loss has its own
    return ImageText(model)


def tokens(names: list[list[str]], vocabulary: dict[str, int]) -> Tensor:
    """Word numbers `(b, LENGTH)`; the largest number ends a caption, which is where open_clip reads it."""
    rows = []
    for name in names:
        row = [vocabulary.get(word, 1) for word in name[: LENGTH - 1]] + [WORDS - 1]
        rows.append(row + [0] * (LENGTH - len(row)))
    return torch.tensor(rows)


def pairs(draw: int) -> tuple[Pairs, Pairs, Tensor]:
    """Pool and test as `(pixels, tokens, index)`, and which captions of the pool are wrong."""
    images, about = emoji()
    generator = torch.Generator().manual_seed(draw)
    order = torch.randperm(len(about), generator=generator).tolist()
    test, pool = order[:TEST], order[TEST : TEST + EMOJI]
    names = [re.findall("[a-z0-9]+", (one["cldr_name"] or one["short_name"]).lower()) for one in about]
    counts: dict[str, int] = {}
    for word in (word for i in pool for word in names[i]):
        counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: -counts[word])[: WORDS - 3]
    vocabulary = {word: i + 2 for i, word in enumerate(common)}
    wrong = torch.randperm(2 * EMOJI, generator=generator)[: int(WRONG * 2 * EMOJI)]
    captions = torch.arange(2 * EMOJI)
    captions[wrong] = wrong.roll(1)
    mark = torch.zeros(2 * EMOJI, dtype=torch.bool).index_fill(0, wrong, True)

    def part(index: list[int], named: list[int]) -> Pairs:
        pixels = torch.cat([images[style][index] for style in ("google", "twitter")]) - 0.5
        return pixels, tokens([names[i] for i in named], vocabulary), torch.arange(len(pixels))

    return part(pool, [(2 * pool)[i] for i in captions.tolist()]), part(test, 2 * test), mark


def embeddings(model: nn.Module, some: Pairs) -> tuple[Tensor, Tensor]:
    """Of length one, of images and of captions, `(b, WIDTH)` each."""
    with torch.no_grad():
        z = model(some[0], some[1])
    return F.normalize(z[:, :WIDTH], dim=1), F.normalize(z[:, WIDTH:], dim=1)


def coupled(pool: Pairs, points: Tensor, steps: int, seed: int, total: int | None = None) -> nn.Module:
    """A new model, trained on some points with CLIP's own loss; the learning rate falls to 0 over `total` steps."""
    torch.manual_seed(seed)
    model = clip()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total or steps)
    batches: list[Tensor] = []
    for _ in range(steps):
        batches = batches or list(points[torch.randperm(len(points))][: len(points) // BATCH * BATCH].split(BATCH))
        index = batches.pop()
        z = model(pool[0][index], pool[1][index])
        u, v = F.normalize(z[:, :WIDTH], dim=1), F.normalize(z[:, WIDTH:], dim=1)
        logits, own = SCALE * u @ v.T, torch.arange(BATCH)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def around(pool: Pairs, model: nn.Module) -> tuple[Setting, dict[str, Tensor]]:
    """The additive loss around a model as a setting whose targets are the pool, and the model's parameters."""
    loss = Contrastive(*embeddings(model, pool), SCALE)
    parameters = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
    return Setting(clip, pool, pool, AdamW(EARLY, BATCH, 2e-3), loss, Loss()), parameters


def held_out_loss(pool: Pairs, model: nn.Module, chosen: Tensor) -> Tensor:
    """Minus the loss of each pair, had the model not trained on it, `(n,)`; it trained on the chosen `(n,)`."""
    setting, parameters = around(pool, model)
    return -setting.outputs(parameters).detach() - OWN * own_effects(setting, parameters) * chosen


def loss(pool: Pairs, model: nn.Module, chosen: Tensor) -> Tensor:
    """Minus the loss of each pair."""
    setting, parameters = around(pool, model)
    return -setting.outputs(parameters).detach()


def clip_score(pool: Pairs, model: nn.Module, chosen: Tensor) -> Tensor:
    """How alike image and caption are to the model."""
    u, v = embeddings(model, pool)
    return (u * v).sum(1)


def own_effects(setting: Setting, parameters: dict[str, Tensor]) -> Tensor:
    """By how much each pair lowers its own loss, `(n,)`: minus the diagonal of `Influence(inverse=Woodbury())`.

    With `R` the gradients over `sqrt(n)` that is `diag(R (R^T R + shift)^-1 R^T) = 1 - shift diag((R R^T + shift)^-1)`,
    a tenth of the work of all effects.
    """
    blocks = calculus.blocks(setting, setting.pool)
    root = torch.cat([calculus.loss_gradients(setting, parameters, block).detach() for block in blocks])
    kernel = (root / setting.n**0.5) @ (root / setting.n**0.5).T
    shift = 0.1 * kernel.diagonal().mean()
    return 1 - shift * torch.linalg.inv(kernel + shift * torch.eye(setting.n).to(kernel)).diagonal()


def retrieval(model: nn.Module, test: Pairs) -> Tensor:
    """How often the right caption is the nearest to an image, and among the nearest ten."""
    u, v = embeddings(model, test)
    alike = u @ v[:TEST].T  # both styles have the same captions
    own = alike[torch.arange(len(u)), torch.arange(len(u)) % TEST]
    nearer = (alike > own[:, None]).sum(1)
    return torch.stack([(nearer < k).double().mean() for k in (1, 10)])


def scores(pool: Pairs, chosen: Tensor, seed: int, *judges: Judge) -> list[Tensor]:
    """What to keep of the pool, `(n,)` by each judge: the mean over models that train shortly on the chosen pairs."""
    points = chosen.nonzero().squeeze(1)
    steps, total = (epochs * len(points) // BATCH for epochs in (EARLY, EPOCHS))
    models = [coupled(pool, points, steps, seed + k, total) for k in range(MODELS)]
    return [torch.stack([judge(pool, model, chosen) for model in models]).mean(0) for judge in judges]


def choices(draw: int, pool: Pairs, wrong: Tensor) -> dict[str, Tensor]:
    """Every way of selecting, as weights `(n,)`."""
    n = len(wrong)
    task = DataSelection(SIZE).subset(n)

    def staged(judge: Judge, first: Tensor) -> Tensor:
        (again,) = scores(pool, task.best(first), 200, judge)
        return task.best(first + again)

    predicted, alike, lowest = scores(pool, torch.ones(n), 100, held_out_loss, clip_score, loss)
    return {
        OURS: staged(held_out_loss, predicted),
        "predicted held-out loss, in one stage": task.best(predicted),
        "CLIP score (DataComp's filter)": task.best(alike),
        "CLIP score, in two stages": staged(clip_score, alike),
        "lowest loss": task.best(lowest),
        "random": random_subset(torch.ones(n), round(SIZE * n), draw),
        "all of the pool": torch.ones(n),
        "random of the right captions": random_subset(~wrong, round(SIZE * n), draw),
    }


def measured(draw: int) -> dict[str, tuple[float, float, float]]:
    """Retrieval at 1 and at 10, and the share of wrong captions, of every way of selecting."""
    pool, test, wrong = pairs(draw)
    steps, found = EPOCHS * len(wrong) // BATCH, {}
    for name, w in choices(draw, pool, wrong).items():
        hits = [retrieval(coupled(pool, w.nonzero().squeeze(1), steps, seed), test) for seed in SEEDS]
        first, ten = torch.stack(hits).mean(0).tolist()
        found[name] = (first, ten, float(w[wrong].sum() / w.sum()))
    print(f"captions, draw {draw}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the table."""
    found = [measured(draw) for draw in DRAWS]
    rows = [
        (name, *(mean([one[name][k] for one in found]) for k in range(3)),
         mean([one[OURS][1] - one[name][1] for one in found]))
        for name in found[0]
    ]  # fmt: skip
    title = (
        f"Emoji CLIP, 40 % of the captions wrong: {SIZE:.0%} of {2 * EMOJI}, {len(DRAWS)} draws x {len(SEEDS)} seeds"
    )
    header = (
        "chosen by",
        "right caption nearest",
        "among the nearest ten",
        "wrong among the chosen",
        "ours ahead, of ten",
    )
    table(title, header, rows)
