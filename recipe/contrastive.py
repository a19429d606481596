"""The contrastive loss of image-text models, against frozen reference embeddings.

CLIP trains on a loss that couples the examples of a batch: each image is told from the captions of all others. Then an
example has no loss of its own, no gradient of its own, and no datamodel is additive over examples. Here each pair is
scored against a fixed bank of reference embeddings instead, those of a model trained before,

    loss_i = 1/2 [ logsumexp(s u_i V_ref^T, s u_i v_i) - s u_i v_i ]  +  the same with images and texts exchanged,

with `u_i`, `v_i` the normalised embeddings of image and text and s the scale. It is additive over examples, so that
training on it and measuring it are what this package is about. What is kept fixed is the price: the references are
those of the model that made them. Take gradients at that model (as a checkpoint, or as what fine-tuning starts from):
from other weights the loss has an easy way out, one embedding for everything that is far from all references.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv:2103.00020.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from recipe.batch import Batch


@dataclass(frozen=True, eq=False)
class Contrastive:
    """`loss(prediction, batch) -> (b,)` of a prediction `(b, 2 d)`: the embeddings of image and text side by side.

    Args:
        images: `(r, d)`, reference embeddings of images.
        texts: `(r, d)`, of texts.
        scale: the inverse temperature.

    Raises:
        ValueError: references of two widths, or on use a prediction of another width.

    Example:
        >>> loss = Contrastive(torch.eye(3), torch.eye(3), scale=1.0)
        >>> alike, apart = (torch.cat([torch.eye(3)[:1], torch.eye(3)[[k]]], 1) for k in (0, 1))
        >>> bool(loss(alike, ()) < loss(apart, ()))
        True
    """

    images: Tensor
    texts: Tensor
    scale: float = 10.0

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or self.texts.ndim != 2 or self.images.shape[1] != self.texts.shape[1]:
            raise ValueError(
                f"Expected reference embeddings (r, d) of one width; got {tuple(self.images.shape)} of images and "
                f"{tuple(self.texts.shape)} of texts."
            )

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The loss of each pair, in nats."""
        d = self.images.shape[1]
        if prediction.shape[-1] != 2 * d:
            raise ValueError(
                f"Expected image and text embeddings side by side, (b, {2 * d}); got {tuple(prediction.shape)}. Wrap "
                "the model in ImageText."
            )
        u, v = F.normalize(prediction[..., :d], dim=-1), F.normalize(prediction[..., d:], dim=-1)
        own = self.scale * (u * v).sum(-1)
        return 0.5 * (self._against(u, self.texts, own) + self._against(v, self.images, own))

    def _against(self, one: Tensor, references: Tensor, own: Tensor) -> Tensor:
        others = self.scale * one @ F.normalize(references.to(one), dim=-1).T
        return torch.logsumexp(torch.cat([others, own.unsqueeze(-1)], -1), -1) - own


class ImageText(nn.Module):
    """A model with `encode_image` and `encode_text`, such as open_clip's, as one prediction `(b, 2 d)`."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Both embeddings side by side."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for many models at once
            return torch.cat([self.clip.encode_image(image), self.clip.encode_text(text)], -1)  # type: ignore[operator]
