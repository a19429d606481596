"""What a selection leaves behind: indices, a table, a part of a data set, a file.

    index | chosen | score | rank

`score` is what a point is worth where the solver arrived, `sense * d objective / d w_i`: positive where more of it
would improve the objective. `rank` counts from 0, the chosen first, by score within.
"""

import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torch.utils.data import Subset as TorchSubset

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = {".csv", ".parquet", ".npy", ".txt"}


def counts_of(decision: Tensor) -> Tensor:
    """The decision as whole numbers `(n,)`.

    Raises:
        ValueError: it chooses no points, such as the pixels of poisons.
    """
    counts = decision.detach().cpu().round().long()
    if decision.ndim != 1 or not torch.equal(counts.to(decision), decision.detach().cpu().to(decision)):
        raise ValueError(
            f"Only a choice of training points can be exported; this decision is {tuple(decision.shape)} of real "
            "numbers. Take `solution.decision`."
        )
    return counts


def indices_of(decision: Tensor) -> Tensor:
    """Indices of the chosen points, ascending; a point of count 2 stands there twice."""
    counts = counts_of(decision)
    return torch.arange(len(counts)).repeat_interleave(counts)


def frame_of(decision: Tensor, scores: Tensor | None) -> "pd.DataFrame":
    """One row a training point: index, chosen (how often), score and rank; NaN where there is no score."""
    import pandas as pd  # slow to import, and needed nowhere else

    counts = counts_of(decision)
    score = torch.full((len(counts),), torch.nan) if scores is None else scores.detach().cpu().float()
    # The chosen first, then by score; the sort is stable, so that the first of equal points comes first.
    order = score.nan_to_num().argsort(descending=True, stable=True)
    order = order[counts[order].clamp(max=1).argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    columns = {"index": torch.arange(len(counts)), "chosen": counts, "score": score, "rank": rank}
    return pd.DataFrame({name: t.numpy() for name, t in columns.items()})


def part_of(data: Any, decision: Tensor) -> Any:
    """The chosen examples of a data set, in its own kind.

    `datasets.Dataset.select` where there is such a method, the rows of tensors or arrays, of a mapping of them or of a
    table of pandas, a list of a list of examples, and a torch `Subset` of any other map-style data set.

    Raises:
        ValueError: a data set of another length.
    """
    index = indices_of(decision)
    parts = list(data.values()) if isinstance(data, Mapping) else data if isinstance(data, (tuple, list)) else []
    batch = bool(parts) and all(isinstance(part, (Tensor, np.ndarray)) for part in parts)
    n = len(parts[0]) if batch else len(data)
    if n != len(decision):
        raise ValueError(f"The decision is about {len(decision)} points; this data set has {n}. Pass the universe.")
    if batch:
        rows = [part[index.to(part.device) if isinstance(part, Tensor) else index.numpy()] for part in parts]
        return dict(zip(data, rows, strict=True)) if isinstance(data, Mapping) else tuple(rows)
    if isinstance(data, list):
        return [data[i] for i in index.tolist()]
    if hasattr(data, "iloc"):
        return data.iloc[index.tolist()]
    if not isinstance(data, (Dataset, TensorDataset)) and callable(getattr(data, "select", None)):
        return data.select(index.tolist())
    return TorchSubset(data, index.tolist())


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path, if `write` can write there: worth knowing before long work.

    Raises:
        ValueError: another suffix, or parquet without pyarrow.
        FileNotFoundError: no such folder.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"Expected a file that ends in {', '.join(sorted(SUFFIXES))}; got {target.name}.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"Expected a file in a folder that exists; there is no {target.parent}. Make it first.")
    if target.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"{target.name} needs pyarrow: pip install pyarrow, or write .csv.")
    return target


def write(path: str | os.PathLike[str], decision: Tensor, scores: Tensor | None) -> None:
    """Write the table as `.csv` or `.parquet`, or the indices as `.npy` or `.txt`, whole or not at all.

    Raises as `check_path`.
    """
    target = check_path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        _fill(part, decision, scores)
        part.chmod(0o644)  # mkstemp makes it private
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _fill(path: Path, decision: Tensor, scores: Tensor | None) -> None:
    if path.suffix == ".csv":
        frame_of(decision, scores).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame_of(decision, scores).to_parquet(path, index=False)
    elif path.suffix == ".npy":
        np.save(path, indices_of(decision).numpy(), allow_pickle=False)
    else:
        path.write_text("".join(f"{i}\n" for i in indices_of(decision).tolist()), encoding="utf-8")
