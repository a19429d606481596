"""Many models at once against a plain PyTorch loop that does the same work, side by side in one run.

The work: the digits MLP on 500 of 1 000 digits, 40 epochs of 7 steps. The loop is what one writes without the recipe:
an `nn.Module` and a `torch.optim.SGD` a model. It runs once in one process with all threads, once in two processes
with one.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from benchmarks.tables import Clock, table
from recipe import Loss, Setting, random_subsets
from recipe.digits import MLP_SGD, load_digits, mlp

MODELS, PLAIN, ROUNDS = 500, 20, 3


def plain(seeds: range) -> float:
    """Milliseconds a model of the plain loop."""
    x, y = load_digits().train
    masks = random_subsets(len(x), r=len(seeds), alpha=0.5, seed=seeds[0])
    clock, rule = Clock(), MLP_SGD
    for seed, mask in zip(seeds, masks, strict=True):
        torch.manual_seed(seed)
        model, points = mlp(), mask.nonzero().squeeze(1)
        optimizer = torch.optim.SGD(model.parameters(), rule.lr, rule.momentum, weight_decay=rule.weight_decay)
        steps = len(points) // rule.batch_size
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-9, total_iters=steps * rule.epochs)
        for _ in range(rule.epochs):
            order = points[torch.randperm(len(points))]
            for i in range(steps):
                index = order[i * rule.batch_size : (i + 1) * rule.batch_size]
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
                schedule.step()
    return 1000 * clock() / len(seeds)


def one_thread() -> None:
    torch.set_num_threads(1)


def two_processes() -> float:
    """Milliseconds a model of two plain loops beside each other, start-up not counted."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        list(pool.map(plain, [range(1), range(1, 2)]))
        each = list(pool.map(plain, [range(PLAIN), range(PLAIN, 2 * PLAIN)]))
    return max(each) / 2


def ours() -> float:
    """Milliseconds a model of `train_many`."""
    digits = load_digits()
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD, output=Loss())
    masks, clock = random_subsets(setting.n, r=MODELS, alpha=0.5, seed=0), Clock()
    MLP_SGD.train_many(setting, masks, range(MODELS))
    return 1000 * clock() / MODELS


def product_speed() -> float:
    """What the machine reaches on a large float32 matrix product, in operations a second."""
    a = torch.randn(2048, 2048)
    torch.mm(a, a)
    clock = Clock()
    for _ in range(5):
        torch.mm(a, a)
    return 5 * 2 * 2048**3 / clock()


def operations() -> float:
    """Floating-point operations of one training run, matrix products only."""
    first, second = 64 * 128, 128 * 10
    step = 2 * MLP_SGD.batch_size * (2 * first + 3 * second)  # forward, weight gradients, one input gradient
    return step * 7 * MLP_SGD.epochs


def main() -> None:
    """Median of interleaved rounds."""
    rows = torch.tensor([[ours(), plain(range(PLAIN)), two_processes()] for _ in range(ROUNDS)])
    mine, threads, processes = rows.median(0).values.tolist()
    best = min(threads, processes)
    share = operations() / (mine / 1000) / product_speed()
    table(
        f"{MODELS} digits MLPs, 500 digits each (median of {ROUNDS} interleaved rounds)",
        ("", "ms a model", "against the faster plain loop"),
        [
            ("`train_many`", f"{mine:.1f}", f"{best / mine:.1f} x ({100 * share:.0f} % of matrix-product speed)"),
            ("plain loop, one process, all threads", f"{threads:.1f}", f"{best / threads:.2f} x"),
            ("plain loop, two processes, one thread each", f"{processes:.1f}", f"{best / processes:.2f} x"),
        ],
    )
