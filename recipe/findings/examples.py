"""How to show an example: a thumbnail, a text with marks, a row of a table, or its number alone.

Images(pixels, labels)[3]   Texts(texts, labels)[3]   Rows(columns, labels)[3]   ->  Content

Each takes `predicted` as well, what the model says of every example; the page sets off where it is not the label.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

THUMBNAIL = 112  # pixels of the longer side; larger images are scaled down
CHANNELS = (3, 4)  # a last axis of such a length says colours
LOSSLESS = 48  # up to this side, images are stored as PNG: JPEG blurs what small ones show


@dataclass(frozen=True)
class Content:
    """What there is to see of an example; one of picture, text and row, or none.

    Args:
        label: its label in words, "" where there is none.
        picture: an encoded image.
        kind: the picture's media type.
        pieces: a text as pieces with a strength from -1 to 1 each, by which they are marked.
        row: names and values.
        predicted: what the model predicts, in the label's words; "" where it is not known.
    """

    label: str = ""
    picture: bytes = b""
    kind: str = ""
    pieces: Sequence[tuple[str, float]] = ()
    row: Mapping[str, str] | None = None
    predicted: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the model predicts another label.

        >>> Content("cat", predicted="dog").wrong, Content("", predicted="dog").wrong
        (True, False)
        """
        return bool(self.label and self.predicted) and self.label != self.predicted


Labels = Sequence[Any] | Tensor | None


class Examples(Protocol):
    """Data that can be shown, example by example."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Content:
        """What there is to see of one example."""


@dataclass(frozen=True)
class Unseen:
    """Examples of which only the number is known, and perhaps the label.

    >>> Unseen(3, labels=[0, 1, 0])[1].label
    '1'
    """

    n: int
    labels: Labels = None
    predicted: Labels = None

    def __post_init__(self) -> None:
        _check_labels(self)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Content:
        return Content(**_said(self, index))


@dataclass(frozen=True, eq=False)
class Images:
    """Images as thumbnails.

    Args:
        pixels: `(b, h, w)` grey values, or `(b, h, w, 3)` or `(b, 3, h, w)` colours; bytes, or numbers from 0 to 1.
        labels: of each, in words or numbers.
        ink: whether grey values are ink on white paper, as those of handwritten digits are.
        predicted: what the model predicts of each.

    Raises:
        ValueError: another shape or range, or another number of labels; the message says how to get there.

    Example:
        >>> Images(torch.rand(2, 8, 8), labels=["cat", "dog"])[1].label
        'dog'
    """

    pixels: Tensor | np.ndarray
    labels: Labels = None
    ink: bool = False
    predicted: Labels = None

    def __post_init__(self) -> None:
        _ = self._bytes
        _check_labels(self)

    @cached_property
    def _bytes(self) -> np.ndarray:
        """`(b, h, w)` or `(b, h, w, 3)`, from 0 to 255."""
        pixels = _channels_last(_array(self.pixels))
        if pixels.dtype != np.uint8:
            pixels = np.rint(_unit_range(pixels) * 255).astype(np.uint8)
        return 255 - pixels if self.ink else pixels

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, index: int) -> Content:
        from PIL import Image  # comes with matplotlib

        image = Image.fromarray(self._bytes[index])
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        kind = "png" if max(image.size) <= LOSSLESS else "jpeg"
        buffer = io.BytesIO()
        image.save(buffer, kind, **({} if kind == "png" else {"quality": 85}))
        return Content(picture=buffer.getvalue(), kind=f"image/{kind}", **_said(self, index))


@dataclass(frozen=True)
class Texts:
    """Texts, shown as they are: markup in them is text as well.

    Args:
        texts: whole texts, or pieces with a strength from -1 to 1 each, by which they are marked.
        labels: of each.
        longest: characters after which an unmarked text is cut.
        predicted: what the model predicts of each.

    Raises:
        ValueError: something that is no text, or another number of labels.

    Example:
        >>> Texts(["<b>bold</b>"])[0].pieces
        (('<b>bold</b>', 0.0),)
    """

    texts: Sequence[str | Sequence[tuple[str, float]]]
    labels: Labels = None
    longest: int = 400
    predicted: Labels = None

    def __post_init__(self) -> None:
        if isinstance(self.texts, str):
            raise ValueError(f"Expected a sequence of texts; got the text {self.texts[:40]!r}. Pass [text].")
        for i, text in enumerate(self.texts):
            if not (isinstance(text, str) or _are_pieces(text)):
                raise ValueError(
                    f"Expected texts, or lists of pairs of a piece and its strength; text {i} is {text!r:.60}. Replace "
                    'missing texts by "", and turn others into `str`.'
                )
        _check_labels(self)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Content:
        text = self.texts[index]
        if isinstance(text, str):
            cut = text if len(text) <= self.longest else text[: self.longest].rstrip() + " …"
            return Content(pieces=((cut, 0.0),), **_said(self, index))
        return Content(pieces=tuple((piece, float(s)) for piece, s in text), **_said(self, index))


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Args:
        columns: values by the column's name, or a data frame.
        labels: of each row.
        predicted: what the model predicts of each.

    Raises:
        ValueError: no columns, columns of different lengths, or another number of labels.

    Example:
        >>> Rows({"age": [39, 50], "work": ["State", "Private"]})[1].row
        {'age': '50', 'work': 'Private'}
    """

    columns: Any
    labels: Labels = None
    predicted: Labels = None

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self._lists.items()}
        if not lengths:
            raise ValueError('Expected at least one column; got none. Pass {"name": values}, or a data frame.')
        if len(set(lengths.values())) > 1:
            shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            raise ValueError(
                f"Expected columns of one length; {shortest!r:.60} has {lengths[shortest]} values and {longest!r:.60} "
                f"{lengths[longest]}. Fill what is missing, for example by None."
            )
        _check_labels(self)

    @cached_property
    def _lists(self) -> dict[str, list[Any]]:
        return {str(name): list(self.columns[name]) for name in self.columns}

    def __len__(self) -> int:
        return len(next(iter(self._lists.values())))

    def __getitem__(self, index: int) -> Content:
        return Content(row={name: _cell(v[index]) for name, v in self._lists.items()}, **_said(self, index))


class _Labelled(Protocol):
    @property
    def labels(self) -> Labels: ...

    @property
    def predicted(self) -> Labels: ...

    def __len__(self) -> int: ...


def _said(examples: _Labelled, index: int) -> dict[str, Any]:
    """Label and prediction of an example."""
    each = {"label": examples.labels, "predicted": examples.predicted}
    return {name: "" if values is None else _cell(values[index]) for name, values in each.items()}


def _check_labels(examples: _Labelled) -> None:
    for name, values in (("labels", examples.labels), ("predicted", examples.predicted)):
        if values is not None and len(values) != len(examples):
            raise ValueError(
                f"Expected {name} of all {len(examples)} examples, one each; got {len(values)}. Pass those of the same "
                "examples, in the same order, or None."
            )


def _are_pieces(text: Any) -> bool:
    return isinstance(text, (list, tuple)) and all(
        isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[0], str) for one in text
    )


def _cell(value: Any) -> str:
    value = value.item() if isinstance(value, (Tensor, np.generic)) else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _array(pixels: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(pixels, Tensor):
        return np.asarray(pixels)
    pixels = pixels.detach().cpu()
    return (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()  # NumPy has no bfloat16


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    shape = pixels.shape
    if pixels.ndim == 3 and shape[-1] in CHANNELS:
        raise ValueError(
            f"Expected images of shape (b, h, w), (b, h, w, 3) or (b, 3, h, w); {tuple(shape)} looks like one colour "
            "image (h, w, channels). Pass `pixels[None]`, without an alpha channel, or grey images as "
            "`pixels[..., None]`."
        )
    if pixels.ndim == 3:
        return pixels
    if pixels.ndim == 4 and shape[-1] in (1, 3):
        return pixels[..., 0] if shape[-1] == 1 else pixels
    if pixels.ndim == 4 and shape[1] in (1, 3):
        return pixels[:, 0] if shape[1] == 1 else np.moveaxis(pixels, 1, -1)
    raise ValueError(
        f"Expected images of shape (b, h, w), (b, h, w, 3) or (b, 3, h, w); got {tuple(shape)}. Reshape flat pixels, "
        "for example `x.view(-1, 28, 28)`, and choose which channels to show."
    )


def _unit_range(pixels: np.ndarray) -> np.ndarray:
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails as well
        raise ValueError(
            f"Expected bytes, or numbers from 0 to 1; the pixels range from {low:.4g} to {high:.4g}. Undo the "
            "standardisation (`x * std + mean`), or divide by the largest value."
        )
    return np.clip(pixels.astype(np.float64), 0, 1)


def check_examples(examples: Examples, n: int, what: str) -> None:
    """Raise `ValueError` where there are not n examples to show.

    >>> check_examples(Unseen(3), 4, "training points")
    Traceback (most recent call last):
    ValueError: There are 4 training points; got 3 examples to show. Pass the same data, in the same order.
    """
    if len(examples) != n:
        raise ValueError(
            f"There are {n} {what}; got {len(examples)} examples to show. Pass the same data, in the same order."
        )
