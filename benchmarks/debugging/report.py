"""The report for 2 000 training points and 200 predictions: seconds to build it and to open it, and its size."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from applications.debugging import blame, group_effects, leakage, overview, subpopulations
from benchmarks import data
from benchmarks.tables import table
from estimators.logra import LoGra
from recipe import SGD, Setting, TopMargin
from recipe.findings import Images, Report

TRAIN, TARGETS = 2000, 200
OPENED = """<script>addEventListener("load", () => {
document.title = "opened " + (document.body.offsetHeight && performance.now()); });</script>"""


def built() -> tuple[Report, float, float]:
    """The report of an MNIST model, and the CPU and wall seconds that it took after the fit."""
    x, y = data.mnist()
    train, targets = (x[:TRAIN], y[:TRAIN]), (x[TRAIN : TRAIN + TARGETS], y[TRAIN : TRAIN + TARGETS])
    model = lambda: torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))  # noqa: E731
    rule = SGD(epochs=10, batch_size=64, lr=0.1, momentum=0.9, weight_decay=1e-3)
    f_hat = LoGra().fit(Setting(model, train, targets, rule, output=TopMargin()))
    cpu, wall = time.process_time(), time.perf_counter()
    points, probes = (Images(part[0].view(-1, 28, 28), part[1], ink=True) for part in (train, targets))
    answers = {
        "subpopulations": subpopulations(f_hat),
        "classes": group_effects(f_hat, train[1].tolist()),
        "leakage": leakage(train[0], targets[0], f_hat),
        "the first target": blame(f_hat, 0),
    }
    report = overview(f_hat, points, probes, answers)
    _ = report.html
    return report, time.process_time() - cpu, time.perf_counter() - wall


def opened(page: str) -> str:
    """Seconds until Chromium has loaded and laid out the page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return "no Chromium"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(page.replace("<head>", f"<head>{OPENED}", 1), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--timeout=30000"]
        done = subprocess.run(
            [chromium, *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
        )
    title = done.stdout.partition("<title>opened ")[2].partition("</title>")[0]
    return f"{float(title) / 1000:.2f}" if title else "not seen"


def main() -> None:
    """One row."""
    report, cpu, wall = built()
    size = f"{len(report.html) / 1e6:.1f} MB"
    row = (f"{cpu:.1f} ({wall:.1f})", opened(report.html), size)
    title = f"The report of {TRAIN} training points and {TARGETS} predictions"
    table(title, ("CPU seconds to build after the fit (wall)", "seconds to open in Chromium", "size"), [row])


if __name__ == "__main__":
    main()
