"""`kill -9` at 20 random moments of a bank job and of an effects job: what is computed again, and what the store holds.

The jobs are those of the tests (`tests/recipe/stores`), with more kills.
"""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.tables import table
from recipe import Effects
from recipe.stores import inspection
from tests.recipe.stores import test_crashes as banks
from tests.recipe.stores import test_effects as effects

KILLS = 20


def killed(job, arguments, seed: int) -> int:
    """Start and kill the job again and again, then let it end; how many kills fell on a running job."""
    draw, hit = random.Random(seed), 0
    for _ in range(KILLS):
        process = banks.FORK.Process(target=job, args=arguments)
        process.start()
        process.join(draw.uniform(0.02, 1.0))
        hit += process.is_alive()
        process.kill()
        process.join()
    process = banks.FORK.Process(target=job, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    return hit


def main() -> None:
    """Both jobs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = banks.started(folder / "undisturbed", folder / "undisturbed.log")
        reference.join()
        hit = killed(banks.job, (folder / "bank", folder / "bank.log", 0.05), seed=0)
        trained = len((folder / "bank.log").read_text().splitlines())
        expected, found = banks.contents(folder / "undisturbed"), banks.contents(folder / "bank")
        same = all(np.array_equal(found[key], expected[key]) for key in expected)
        assert not inspection.check(folder / "bank").damaged
        rows = [("bank", f"{banks.RUNS} runs in parts of 4", f"{hit}", f"{trained - banks.RUNS}", str(same))]
        effects.module.BLOCK_BYTES, effects.calculus._rows = 1, lambda p: 1
        hit = killed(effects.job, (folder / "effects", folder / "effects.log", 0.1), seed=1)
        blocks = len((folder / "effects.log").read_text().splitlines())
        same = torch.equal(Effects(folder / "effects")[:], effects.GradDot().fit(effects.small_mlp()).effects.float())
        rows.append(("effects", "40 blocks", f"{hit}", f"{max(0, blocks - 40)}", str(same)))
    header = ("job", "work", "kills of a running job", "done again (what was in flight)", "same as undisturbed")
    table(f"`kill -9` at {KILLS} random moments", header, rows)


if __name__ == "__main__":
    main()
