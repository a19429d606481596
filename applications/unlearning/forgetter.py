"""The forgetter: a deployed model that forgets on request, and remembers that it did.

The truth on disk is one file of the model's start and one journal of receipts. A request is answered in this order:
compute the model without everything forgotten so far, write the receipts, wait for the disk, let the new model answer,
acknowledge. A crash before the write loses an unacknowledged request; after it, the restarted forgetter finds the
receipt and computes the same model again. No point is applied twice, since a model is a function of the *set* of
points that were forgotten (a certified one of their order, which the journal keeps).
"""

import hashlib
import json
import math
import operator
import os
import re
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from applications.unlearning import audit as audits
from applications.unlearning.deployed import Deployed, Method, Unlearned
from applications.unlearning.journal import Journal, sync_folder
from applications.unlearning.receipt import Receipt, new_id
from recipe import batch as batches
from recipe.batch import Batch
from recipe.record import summary
from recipe.retrain import Retrain
from recipe.setting import Parameters, Setting
from recipe.stores.bank import Bank

AUDITED = 10  # oracles of an audit by default: enough for distances of means
FOR_KLOM = 80  # oracles of each group, from which on an audit has KLoM


class UnknownPointError(ValueError):
    """A request names points that are not in the universe."""


class NothingLeftError(ValueError):
    """A request would leave the universe empty."""


class Forgetter:
    """Holds the deployed model and answers requests to forget.

    Args:
        setting: of the model; where it has checkpoints, the first one is the deployed model, else one is trained.
        estimator: what predicts outputs, fitted to the deployed model itself; None where the method needs none.
        method: how the model forgets, such as `ParameterUpdate()`, `DatamodelMatching(...)`, `CertifiedRemoval()`.
        bank: where an audit's retrained models are looked up and kept; None trains them for every audit.
        store: a folder for what must survive a restart; None keeps it in memory.
        seed: of the deployed model.

    Raises:
        ValueError: a store of another universe, model or method, with the difference named.

    Example:
        >>> import torch
        >>> from applications.unlearning import RetrainFromScratch
        >>> from recipe import Newton, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> forgetter = Forgetter(setting, None, RetrainFromScratch())
        >>> forgetter.forget([3, 5]).forgotten, forgetter.forget([5]).forgotten
        ([3, 5], [])
    """

    def __init__(
        self,
        setting: Setting,
        estimator: Any,
        method: Method,
        bank: Bank | None = None,
        store: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.setting, self.estimator, self.method, self.bank = setting, estimator, method, bank
        self._lock = threading.RLock()
        self._store = None if store is None else Path(store)
        self._journal = None if self._store is None else Journal(self._store / "journal.jsonl")
        self._receipts: dict[str, Receipt] = {}
        self._owner: dict[int, str] = {}  # of each forgotten point, the receipt that says so
        try:
            self.deployed = self._start(seed)
            self._now = method.start(self.deployed)
            self._replay()
        except BaseException:
            self.close()
            raise
        self._serving = self.model

    # ---- requests --------------------------------------------------------------------------------------------------
    def forget(self, ids: Iterable[int] | Tensor, request: str | None = None) -> Receipt:
        """Forget points.

        Args:
            ids: of the points; those that were forgotten before are named in the receipt, and nothing happens to them.
            request: a name of the caller's: the same request again gets the same receipt.

        Raises:
            UnknownPointError: ids that do not exist.
            NothingLeftError: no point would be left.
        """
        return self.forget_all([(ids, request)])[0]

    def forget_all(self, requests: Sequence[tuple[Iterable[int] | Tensor, str | None]]) -> list[Receipt]:
        """Answer several requests by one update of the model and one wait for the disk. Raises as `forget`, for all."""
        with self._lock:
            wanted = [(self._checked(ids), request or new_id()) for ids, request in requests]
            taken = dict(self._owner)
            drafts: dict[str, Receipt] = {}
            for ids, name in wanted:
                if name in self._receipts or name in drafts:
                    self._same_request(ids, (self._receipts.get(name) or drafts[name]).ids, name)
                    continue
                fresh = [i for i in ids if i not in taken]
                already = {str(i): taken[i] for i in ids if i in taken}
                taken.update(dict.fromkeys(fresh, name))
                drafts[name] = self._draft(name, ids, fresh, already)
            if len(taken) >= self.setting.n:
                raise NothingLeftError(
                    f"The request would leave none of the {self.setting.n} training points. Withdraw the model instead."
                )
            self._commit(list(drafts.values()), taken)
            return [self._receipts[name] for _, name in wanted]

    @property
    def forgotten(self) -> list[int]:
        """The points that were forgotten, in increasing order."""
        return sorted(self._owner)

    @property
    def receipts(self) -> list[Receipt]:
        """All receipts, the first one first."""
        return list(self._receipts.values())

    def receipt(self, name: str) -> Receipt:
        """The receipt of a request. Raises `KeyError` where there is none."""
        return self._receipts[name]

    # ---- the model -------------------------------------------------------------------------------------------------
    @property
    def model(self) -> nn.Module:
        """A copy of the model as it is now."""
        return self._module(self._now)

    @property
    def parameters(self) -> Parameters:
        """Of the model as it is now."""
        return self._now.parameters

    def outputs(self, batch: Batch) -> Tensor:
        """The predictions of the model as it is now, `(b, ...)`."""
        with torch.no_grad():
            return self.setting.forward(self._serving, batch)  # a module of its own: requests come in threads

    def close(self) -> None:
        """Let another process use the store."""
        if self._journal is not None:
            self._journal.close()

    # ---- audits ----------------------------------------------------------------------------------------------------
    def audit(self, n: int = AUDITED) -> audits.Audit:
        """Compare with models that are really retrained without what was forgotten; receipts get what was measured.

        Args:
            n: oracles. From 80 on, KLoM as well: then 2 n oracles, and n models of other seeds that unlearn.

        Raises:
            ValueError: fewer than two oracles, or nothing was forgotten.
        """
        if n < 2 or not self._owner:
            raise ValueError(
                f"An audit needs at least two oracles and something forgotten; got n={n} and {len(self._owner)} points."
            )
        with self._lock:
            audit = audits.audit(self, n, FOR_KLOM)
            self._record_measured(_plain(audit.json()))
            return audit

    def retrained(self, seeds: Sequence[int]) -> Retrain:
        """Oracles of these seeds."""
        return Retrain(self.setting, seeds, self.bank)

    @property
    def keep(self) -> Tensor:
        """The weights without what was forgotten, `(n,)`."""
        return self._keep(self._owner)

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _checked(self, ids: Iterable[int] | Tensor) -> list[int]:
        points = sorted({_index(i) for i in (ids.tolist() if isinstance(ids, Tensor) else ids)})
        outside = [i for i in points if not 0 <= i < self.setting.n]
        if outside or not points:
            raise UnknownPointError(
                f"Expected ids from 0 to {self.setting.n - 1}, at least one; got "
                + (f"{outside[:5]}, which do not exist." if outside else "none.")
            )
        return points

    def _same_request(self, ids: Sequence[int], before: Sequence[int], name: str) -> None:
        if list(before) != list(ids):
            raise ValueError(
                f"The request {name!r} was made before, for other points. Give every request its own name."
            )

    def _draft(self, name: str, ids: list[int], fresh: list[int], already: dict[str, str]) -> Receipt:
        hashes = {str(i): batches.content_hash(batches.take(self.setting.pool, slice(i, i + 1))) for i in fresh}
        return Receipt(name, ids, fresh, already, hashes, _described(self.method), {}, self._predicted(fresh))

    def _predicted(self, fresh: list[int]) -> float | None:
        f_hat = self.deployed.f_hat
        if f_hat is None or not fresh:
            return None
        before = self.keep
        after = before.index_fill(0, torch.tensor(fresh), 0.0)
        if not after.any():
            return None
        with torch.no_grad():
            return _finite(float((f_hat(after) - f_hat(before)).abs().mean()))

    def _commit(self, drafts: list[Receipt], taken: dict[int, str]) -> None:
        """The new model first, then the disk, then everybody else."""
        if not drafts:
            return
        now = self._now
        if len(taken) > len(self._owner):
            now = self.method.forget(self.deployed, now, self._keep(taken))
        said = {"parameters": _digest(now.parameters), **summary(now.report)}
        receipts, serving = [replace(draft, model=said) for draft in drafts], self._module(now)
        if self._journal is not None:
            self._journal.append([{"batch": [receipt.json() for receipt in receipts]}])
        self._now, self._owner, self._serving = now, taken, serving
        self._receipts.update({receipt.id: receipt for receipt in receipts})

    def _replay(self) -> None:
        """Read what was acknowledged, and make the model of it: batch by batch where its method looks at the order."""
        ordered = type(self._now) is not Unlearned
        for record in self._journal.records if self._journal else []:
            receipts = [Receipt.read(entry) for entry in record.get("batch", [])]
            for receipt in receipts:
                self._receipts[receipt.id] = receipt
                self._owner.update(dict.fromkeys(receipt.forgotten, receipt.id))
            if ordered and any(receipt.forgotten for receipt in receipts):
                self._now = self.method.forget(self.deployed, self._now, self.keep)
            for name, measured in record.get("measured", {}).items():
                self._receipts[name] = replace(self._receipts[name], measured=measured)
        if self._owner and not ordered:
            self._now = self.method.forget(self.deployed, self._now, self.keep)

    def _record_measured(self, measured: Mapping[str, Any]) -> None:
        names = [name for name, receipt in self._receipts.items() if receipt.forgotten]
        if self._journal is not None:
            self._journal.append([{"measured": dict.fromkeys(names, measured)}])
        self._receipts.update({name: replace(self._receipts[name], measured=measured) for name in names})

    def _module(self, now: Unlearned) -> nn.Module:
        return self.setting.module(now.parameters).eval()

    def _keep(self, owner: Iterable[int]) -> Tensor:
        return torch.ones(self.setting.n).index_fill(0, torch.tensor(sorted(owner), dtype=torch.long), 0.0)

    def _start(self, seed: int) -> Deployed:
        """The deployed model, from the store, the setting or training, with the datamodel that is fitted to it."""
        header = {
            "universe": batches.content_hash(self.setting.pool),
            "model": {name: list(t.shape) for name, t in self.setting.initial(0).items()},
            "loss": _described(self.setting.loss),
            "algorithm": _described(self.setting.algorithm),
            "method": _described(self.method),
            "estimator": _described(self.estimator),
            "seed": seed,
        }
        before = self._journal.records[0]["header"] if self._journal and self._journal.records else None
        different = [key for key in header if before is not None and key in before and before[key] != header[key]]
        if before is not None and different:
            raise ValueError(
                f"{self._store} holds the requests of another {' and '.join(different)}: {before[different[0]]} there, "
                f"{header[different[0]]} here. Choose another store."
            )
        parameters = self._base(seed)  # before the header: a journal means that the model is there
        secret = secrets.randbits(62) if before is None else int(before["secret"])
        if self._journal is not None and before is None:
            self._journal.append([{"header": {**header, "secret": secret}}])
        deployed = Deployed(self.setting, parameters, seed=seed, secret=secret)
        return deployed if self.estimator is None else deployed.fitted(self.estimator)

    def _base(self, seed: int) -> Parameters:
        path = None if self._store is None else self._store / "deployed.npz"
        like, given = self.setting.initial(0), None
        if self.setting.checkpoints:
            known = self.setting.checkpoints[0].parameters
            given = {name: known.get(name, t).detach().to(t) for name, t in like.items()}
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                stored = {name: torch.from_numpy(arrays[name]).to(t) for name, t in like.items()}
            if given is not None and _digest(given) != _digest(stored):
                raise ValueError(
                    f"{self._store} holds the requests of another deployed model than the setting's checkpoint. Choose "
                    "another store."
                )
            return stored
        parameters = given or self.setting.algorithm.train(self.setting, torch.ones(self.setting.n), seed)
        if path is not None:
            part = path.with_suffix(".part")
            with open(part, "wb") as file:
                np.savez(file, **{name: t.cpu().numpy() for name, t in parameters.items()})  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        return parameters


def _index(value: Any) -> int:
    """One id. Raises where it is no whole number: `int(True)` and `int(1.7)` would forget the wrong point."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise UnknownPointError(
            f"Ids are whole numbers; got {value!r}. Of a mask, pass mask.nonzero().squeeze(1), or points(mask, n)."
        )
    return operator.index(value)


def _described(value: Any) -> Any:
    """A summary as the journal reads it back, without what changes from process to process."""
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(summary(value))))


def _plain(value: Any) -> Any:
    """JSON without NaN."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _digest(parameters: Parameters) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(parameters.items()):
        digest.update(name.encode() + t.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
