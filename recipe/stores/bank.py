"""The bank: retrainings that outlive the process, so that none is lost to a crash or done twice.

A bank belongs to one fingerprint: model, algorithm, loss and how the model is called. In it a run is known by the
examples it trained on (their content and weights), its seed and the examples added. Beneath a run lie its outputs, one
array for each pair of targets and output that was ever measured, and, on request, its parameters: then new targets
retrain nothing.

Runs come in segments (`recipe.stores.segments`), one for each part that trained together: `key`, `seed`, `seconds`,
`weights` (as packed bits where they are zeros and ones), `outputs/<measure>` and `parameters/<name>`. A segment with
`key` and `outputs/<measure>` alone holds what was measured later. A segment of the kind `universe` says which examples
the columns of `weights` stand for.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe import batch as batches
from recipe.arrays import as_array, as_tensor
from recipe.setting import Parameters, Setting
from recipe.shards import Shard, Trained
from recipe.stores.fingerprint import fingerprint, measure_key
from recipe.stores.inspection import RUNS, WHOLE
from recipe.stores.segments import Segments


@dataclass(frozen=True)
class Bank:
    """Retrainings in a store: `Retrain(setting, seeds, bank=Bank("runs/bank"))` looks a run up before training it.

    Any number of processes may use one bank at once. A run counts when it is there whole; killed at any moment, a job
    goes on where it was, without what was in flight. Two processes that train the same run both go on, with the one
    that is read first.

    Args:
        path: a folder, or any fsspec address such as `s3://bucket/bank`.
        parameters: whether to keep trained parameters too, so that new targets and outputs retrain nothing.

    Raises, as soon as it is used:
        ValueError: a bank of another setting (what differs is named), or of a newer format, which is left untouched.
        DamagedError: an object of the bank is not what was written.

    Example:
        >>> from recipe import Bank, Newton, Retrain, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> outputs = Retrain(setting, bank=Bank("memory://bank"))(torch.ones(20))
        >>> again = Retrain(setting, bank=Bank("memory://bank"))(torch.ones(20))  # trains nothing
        >>> torch.equal(outputs, again)
        True
    """

    path: str
    parameters: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))

    # ---- what Retrain asks -------------------------------------------------------------------------------------------
    def admit(self, setting: Setting) -> None:
        """Make the bank for this setting, or see that it belongs to it. Raises as the class says."""
        mine = fingerprint(setting)
        theirs = (self._store.head() or self._store.found({"fingerprint": mine}))["fingerprint"]
        if named := [line for part in mine if (line := _difference(part, theirs.get(part), mine[part]))]:
            raise ValueError(
                f"The bank {self.path} belongs to another setting. " + " ".join(named) + " Use another bank."
            )
        self._admit_universe(setting)

    def outputs(self, setting: Setting, keys: Sequence[str]) -> dict[str, Tensor]:
        """The outputs `(m,)` of those runs that are there and were measured like this."""
        found = self._find(keys, f"outputs/{measure_key(setting)}")
        dtype = setting.output_dtype
        if not found:
            return {}
        together = torch.from_numpy(np.stack(list(found.values()))).to(setting.device, dtype)
        return dict(zip(found, together.unbind(), strict=True))

    def known(self, keys: Sequence[str]) -> set[str]:
        """Those runs that are there, whatever was measured."""
        return set(self._index.places(keys, "seed"))

    def trained(self, setting: Setting, keys: Sequence[str]) -> dict[str, Parameters]:
        """The parameters of those runs that are there with them."""
        names = setting.initial(0)
        found = {name: self._find(keys, _column(name)) for name in names}
        whole = [key for key in keys if all(key in rows for rows in found.values())]
        types = {name: t.dtype for name, t in names.items()}
        return {
            key: {name: as_tensor(rows[key].copy(), types[name]).to(setting.device) for name, rows in found.items()}
            for key in whole
        }

    def add(
        self,
        setting: Setting,
        keys: Sequence[str],
        outputs: Tensor,
        shard: Shard | None = None,
        trained: Trained | None = None,
    ) -> None:
        """Write one segment: outputs `(r, m)` of r runs, and, where these are new, what they are.

        Raises:
            OSError: the disk is full, say.
        """
        columns: dict[str, np.ndarray] = {"key": _packed_keys(keys)}
        attributes: dict[str, Any] = {"kind": RUNS, "targets": list(setting.output_shape)}
        if shard is not None and trained is not None:
            weights, packed = _packed(shard.weights)
            columns |= {"seed": np.array(shard.seeds, dtype=np.int64), "weights": weights}
            columns["seconds"] = np.full(len(keys), trained.seconds)
            attributes |= {"universe": setting.contents, "n": setting.n, "packed": packed}
            if shard.added is not None and batches.size(shard.added):
                attributes["added"] = batches.content_hash(shard.added)
            if self.parameters:
                runs = trained.parameters
                columns |= {_column(name): as_array(torch.stack([run[name] for run in runs])) for name in runs[0]}
        exact = torch.promote_types(outputs.dtype, torch.float32)  # half precision is for computing
        columns[f"outputs/{measure_key(setting)}"] = as_array(outputs.to(exact))
        self._store.write(columns, attributes)

    # ---- inside ------------------------------------------------------------------------------------------------------
    @cached_property
    def _store(self) -> Segments:
        return Segments(self.path, "bank")

    @cached_property
    def _index(self) -> "_Index":
        return _Index(self._store)

    def _find(self, keys: Sequence[str], column: str) -> dict[str, np.ndarray]:
        places = self._index.places(keys, column)
        read = {segment: self._store.read(segment, column) for segment in {place[0] for place in places.values()}}
        return {key: read[segment][row] for key, (segment, row) in places.items()}

    def _admit_universe(self, setting: Setting) -> None:
        """Examples are known by their content, so a universe that contains a known one, or part of one, is at home."""
        known = [name for name in self._index.fresh() if self._index.kind(name) == WHOLE]
        mine = setting.contents
        if any((self._store.document(name) or {})["universe"] == mine for name in known):
            return
        ours = _multiset(setting.examples)
        misfits = []
        for name in known:
            theirs = _multiset(self._store.read(name, "example"))
            lost, new = theirs - ours, ours - theirs
            if not lost or not new:
                break
            misfits.append((lost.total(), new, theirs.total()))
        else:
            if misfits:
                lost_count, new, total = min(misfits, key=lambda misfit: misfit[0])
                first = next(i for i, e in enumerate(map(bytes, setting.examples)) if e in new)
                raise ValueError(
                    f"The bank {self.path} belongs to another setting. Universe: of {total} examples in the bank, "
                    f"{lost_count} are not in this setting, which has {new.total()} others, the first at index "
                    f"{first}. A bank takes a universe that was shuffled, extended or cut, not one whose examples "
                    "changed. Use another bank; where some were taken out and others put in, open this one with all of "
                    "them first."
                )
        self._store.write({"example": setting.examples}, {"kind": WHOLE, "universe": mine, "n": setting.n})


class _Index:
    """Where a run's columns lie: what one process knows of a store that many write to."""

    def __init__(self, store: Segments) -> None:
        self._store = store
        self._seen: set[str] = set()
        self._rows: dict[str, list[tuple[str, int]]] = {}  # by key: (segment, row)

    def places(self, keys: Sequence[str], column: str) -> dict[str, tuple[str, int]]:
        """Of those runs that have the column: where it lies. The first segment by name wins."""
        self.fresh()
        found = {}
        for key in keys:
            for segment, row in self._rows.get(key, ()):
                if column in self._store.columns(segment):
                    found[key] = (segment, row)
                    break
        return found

    def fresh(self) -> list[str]:
        """All complete segments, after taking in those that are new."""
        for name in self._store.names():
            if name in self._seen or self._store.document(name) is None:
                continue
            if self.kind(name) == RUNS:
                for row, key in enumerate(_unpacked_keys(self._store.read(name, "key"))):
                    self._rows.setdefault(key, []).append((name, row))
            self._seen.add(name)
        return sorted(self._seen)

    def kind(self, name: str) -> str:
        """Runs or a universe."""
        return str((self._store.document(name) or {})["kind"])


def _difference(part: str, theirs: str | None, mine: str) -> str:
    return "" if theirs == mine else f"{part.capitalize()}: the bank has {theirs}, this setting {mine}."


def _multiset(examples: np.ndarray) -> Counter[bytes]:
    return Counter(map(bytes, examples))


def _column(parameter: str) -> str:
    return f"parameters/{parameter}"


def _packed_keys(keys: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(len(keys), -1)


def _unpacked_keys(rows: np.ndarray) -> list[str]:
    text, width = rows.tobytes().hex(), 2 * rows.shape[1]
    return [text[i : i + width] for i in range(0, len(text), width)]


def _packed(weights: Tensor) -> tuple[np.ndarray, bool]:
    """Weights `(r, n)` as bits where they are zeros and ones, else as they are; and whether they are packed."""
    w = weights.detach().cpu().numpy()
    chosen = w > 0
    return (np.packbits(chosen, axis=1), True) if (w[chosen] == 1).all() else (w, False)
