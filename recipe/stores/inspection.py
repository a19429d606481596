"""What a bank holds, whether it is sound, and all of it in one file: what `recipe bank show|check|export` print."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.stores.segments import Segments

RUNS, WHOLE = "runs", "universe"  # kinds of segments


@dataclass(frozen=True)
class Holdings:
    """What a bank holds.

    Args:
        path: where it lies.
        fingerprint: what its runs have in common, by part.
        runs: how many different ones.
        seeds: how many different ones.
        universes: the sizes of the universes that were attributed with it.
        measures: how many runs have been measured, for each pair of targets and output, by key.
        parameters: of how many runs the parameters are kept.
        seconds: that training them took.
    """

    path: str
    fingerprint: Mapping[str, str]
    runs: int
    seeds: int
    universes: Sequence[int]
    measures: Mapping[str, int]
    parameters: int
    seconds: float

    def __str__(self) -> str:
        rows = {
            "runs": f"{self.runs} with {self.seeds} seeds, trained in {self.seconds:.0f} s; of {self.parameters} the "
            "parameters are kept",
            "universe": ", ".join(f"{n} examples" for n in self.universes),
            **{f"outputs {key[:8]}": f"of {count} runs" for key, count in self.measures.items()},
            **self.fingerprint,
        }
        return "\n".join([f"bank {self.path}", *(f"  {name:<18} {text}" for name, text in rows.items())])


@dataclass(frozen=True)
class Health:
    """Whether a store is sound.

    Args:
        path: where it lies.
        complete: how many segments are there whole.
        unfinished: segments that were interrupted, or are being written now; they do not count.
        damaged: the objects that are not what was written, by segment.
        repaired: whether the unfinished and the damaged ones were taken out.
    """

    path: str
    complete: int
    unfinished: Sequence[str]
    damaged: Mapping[str, Sequence[str]]
    repaired: bool

    def __str__(self) -> str:
        rows = [f"{self.path}: {self.complete} segments are sound"]
        rows += [f"  damaged    segments/{name}/{path}" for name, paths in self.damaged.items() for path in paths]
        rows += [f"  unfinished segments/{name}" for name in self.unfinished]
        if self.repaired and len(rows) > 1:
            rows.append("Taken out; asking again redoes what was in them.")
        elif self.damaged:
            rows.append("`--repair` takes damaged and unfinished segments out, to be redone; stop other jobs first.")
        return "\n".join(rows)


def show(path: str | os.PathLike[str]) -> Holdings:
    """What the bank at this address holds.

    Raises:
        ValueError: there is no bank, or one of a newer format.
        DamagedError: an object is not what was written.
    """
    store, head = _opened(path)
    columns = _Columns(store)
    found: Counter[str] = Counter(columns.of)
    seeds = columns.read("seed")
    return Holdings(
        path=store.address,
        fingerprint=head["fingerprint"],
        runs=len(set(columns.keys)),
        seeds=len(set(seeds.values())),
        universes=[len(store.read(name, "example")) for name in columns.names(WHOLE)],
        measures={c.removeprefix("outputs/"): len(columns.read(c)) for c in found if c.startswith("outputs/")},
        parameters=len(columns.rows(next((c for c in found if c.startswith("parameters/")), ""))),
        seconds=float(sum(columns.read("seconds").values())),
    )


def check(path: str | os.PathLike[str], repair: bool = False) -> Health:
    """Whether everything in a store is what was written; with `repair`, what is not is taken out.

    Raises:
        ValueError: there is no bank, or one of a newer format.
    """
    store, _ = _opened(path)
    complete, unfinished, damaged = 0, [], {}
    for name in store.names():
        objects = store.damage(name)
        if objects:
            damaged[name] = objects
        elif store.document(name) is None:
            unfinished.append(name)
        else:
            complete += 1
    if repair:
        for name in [*unfinished, *damaged]:
            store.remove(name)
    return Health(store.address, complete, unfinished, damaged, repair)


def export(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """All runs in one file, by its ending: `.npz`, `.csv` or `.parquet`; how many they are.

    Arrays of the `.npz`: `key`, `seed`, `seconds`, `examples (N, 16)`, `weights (r, N)` over them, `added`, what
    identifies the examples added to a run by their content (empty: none), and `outputs/<measure> (r, m)` for each pair
    of targets and output, NaN where a run was not measured. In tables a run is a row, its points are listed as `index`
    or `index:weight`, and each output is a column.

    Raises:
        ValueError: there is no bank, or another ending.
    """
    store, _ = _opened(path)
    arrays, ending = _Columns(store).arrays(), Path(out).suffix
    if ending == ".npz":
        np.savez(out, allow_pickle=False, **arrays)
    elif ending in (".csv", ".parquet"):
        _write_table(arrays, Path(out))
    else:
        raise ValueError(f"Export writes .npz, .csv and .parquet; got {Path(out).name!r}.")
    return len(arrays["key"])


class _Columns:
    """All runs of a store, column by column."""

    def __init__(self, store: Segments) -> None:
        self._store = store
        self._documents = {name: found for name in store.names() if (found := store.document(name)) is not None}
        self._keys = {name: [bytes(key).hex() for key in store.read(name, "key")] for name in self.names(RUNS)}

    def names(self, kind: str) -> list[str]:
        """The complete segments of a kind."""
        return [name for name, document in self._documents.items() if document["kind"] == kind]

    @property
    def keys(self) -> list[str]:
        """Of all runs, as often as they were written."""
        return [key for keys in self._keys.values() for key in keys]

    @property
    def of(self) -> list[str]:
        """The columns of all segments."""
        return [column for name in self._keys for column in self._store.columns(name)]

    def rows(self, column: str) -> dict[str, tuple[str, int]]:
        """Where a run's value lies."""
        found: dict[str, tuple[str, int]] = {}
        for name, keys in self._keys.items():
            if column in self._store.columns(name):
                for row, key in enumerate(keys):
                    found.setdefault(key, (name, row))
        return found

    def read(self, column: str) -> dict[str, Any]:
        """A run's value, by key."""
        rows = self.rows(column)
        read = {name: self._store.read(name, column) for name in {name for name, _ in rows.values()}}
        return {key: read[name][row] for key, (name, row) in rows.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """See `export`."""
        seeds, seconds = self.read("seed"), self.read("seconds")
        keys = sorted(seeds)
        examples, weights = self._weights(keys)
        places: Any = self.rows("seed")
        out = {
            "key": np.array(keys),
            "seed": np.array([seeds[key] for key in keys]),
            "seconds": np.array([seconds[key] for key in keys]),
            "examples": examples,
            "weights": weights,
            "added": np.array([self._documents[name].get("added", "") for name, _ in map(places.get, keys)]),
        }
        for column in sorted({c for c in self.of if c.startswith("outputs/")}):
            values = self.read(column)
            width = len(next(iter(values.values())))
            nothing = np.full(width, np.nan)
            out[column] = np.stack([values.get(key, nothing) for key in keys])
        return out

    def _weights(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All examples `(N, 16)` of all universes, and weights `(r, N)` over them."""
        places: dict[tuple[bytes, int], int] = {}  # of the k-th copy of an example
        columns = {}
        for name in self.names(WHOLE):
            copies: Counter[bytes] = Counter()
            index = []
            for example in map(bytes, self._store.read(name, "example")):
                index.append(places.setdefault((example, copies[example]), len(places)))
                copies[example] += 1
            columns[self._documents[name]["universe"]] = np.array(index)
        weights = np.zeros((len(keys), len(places)), dtype=np.float32)
        for i, (name, row) in enumerate(map(self.rows("weights").__getitem__, keys)):
            described = self._documents[name]
            values = self._store.read(name, "weights")[row]
            values = np.unpackbits(values, count=described["n"]) if described["packed"] else values
            if described["universe"] not in columns:
                raise ValueError(
                    f"{self._store.address} lacks the list of examples that runs were trained on; it was damaged and "
                    "taken out. Open the bank with its setting, `Retrain(setting, bank=...)`, which writes the list "
                    "again, and export then."
                )
            weights[i, columns[described["universe"]]] = values
        return np.array([list(example) for example, _ in places], dtype=np.uint8), weights


def _opened(path: str | os.PathLike[str]) -> tuple[Segments, dict[str, Any]]:
    store = Segments(os.fspath(path), "bank")
    head = store.head()
    if head is None:
        raise ValueError(f"There is no bank at {store.address}.")
    return store, head


def _write_table(arrays: Mapping[str, np.ndarray], out: Path) -> None:
    import pandas as pd  # slow to import, and needed nowhere else

    points = [" ".join(_points(row)) for row in arrays["weights"]]
    table = pd.DataFrame({"key": arrays["key"], "seed": arrays["seed"], "seconds": arrays["seconds"], "points": points})
    if arrays["added"].astype(bool).any():
        table["added"] = arrays["added"]
    measured = [
        pd.DataFrame(values, columns=[f"{name}/{j}" for j in range(values.shape[1])])
        for name, values in arrays.items()
        if name.startswith("outputs/")
    ]
    table = pd.concat([table, *measured], axis=1)
    table.to_csv(out, index=False) if out.suffix == ".csv" else table.to_parquet(out)


def _points(weights: np.ndarray) -> list[str]:
    return [str(i) if weights[i] == 1 else f"{i}:{weights[i]:g}" for i in np.flatnonzero(weights)]
