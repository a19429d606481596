"""Certified removal of single digits, 1 000 random requests: residual, bound, budget and retraining."""

import torch

from applications.unlearning import CertifiedRemoval, Deployed, stream
from benchmarks.tables import table
from recipe import Correct, Newton, Setting
from recipe.digits import load_digits, logistic

REQUESTS, POOL = 1000, 1797
NOISES = (1.0, 10.0)


def main() -> None:
    """Two classes keep the features small enough for 1 000 exact Hessians; then all ten for 100 requests."""
    digits = load_digits()
    x = torch.cat([part[0] for part in digits])
    y = torch.cat([part[1] for part in digits])
    size = x.norm(dim=1, keepdim=True)
    rows = []
    for name, count, classes in (("digits below 5 or not", REQUESTS, 2), ("ten digits", 100, 10)):
        labels = (y >= 5).long() if classes == 2 else y
        pool, test = (x[:1500] / size[:1500], labels[:1500]), (x[1500:] / size[1500:], labels[1500:])
        model = logistic if classes == 10 else lambda: torch.nn.Linear(64, 2)
        setting = Setting(model, pool, test, Newton(l2=1e-2), output=Correct())
        for noise in NOISES:
            method, deployed = CertifiedRemoval(noise=noise, seed=0), Deployed(setting, setting.initial(0))
            now, keep = method.start(deployed), torch.ones(1500)
            first = float(setting.outputs(now.parameters).mean())
            above, largest = 0, 0.0
            for forget in stream(1500, count, 1, seed=1):
                keep = keep.index_fill(0, forget, 0.0)
                now = method.forget(deployed, now, keep)
                residual = now.residual
                above += residual > now.spent
                largest = max(largest, residual / now.spent if now.spent > 1e-6 else 0.0)
            rows.append((
                name, f"{noise:g}", f"{count}", f"{above}", f"{largest:.3f}", f"{method.budget:.3f}",
                f"{now.retrainings}", f"{first:.3f}", f"{float(setting.outputs(now.parameters).mean()):.3f}",
            ))  # fmt: skip
            print(rows[-1], flush=True)
    header = (
        "task", "noise", "requests", "residual above bound", "largest residual / bound", "budget", "retrainings",
        "accuracy before", "after",
    )  # fmt: skip
    table("Certified removal, epsilon = 1, delta = 1e-4, weight decay 1e-2, inputs of norm 1", header, rows)
