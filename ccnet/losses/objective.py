"""What a training run minimises: the terms of its loss and their weights."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ccnet.losses.consistency import category_consistent
from ccnet.losses.cross_entropy import cross_entropy, fitting_weights, pixel_weights
from ccnet.losses.ohem import Ohem, ohem_cross_entropy
from ccnet.losses.overlap import dice, lovasz_softmax
from ccnet.model import Output
from ccnet.resizing import resize_logits
from ccnet.shapes import Float, Float64, Integer

Term = tuple[float, Float[Tensor, ""], Float64[Tensor, ""]]
"""(weight, sum, count) of a summand of the loss: weight * (sum over all workers / count over all workers)."""


@dataclass(frozen=True)
class Objective:
    """loss = main + aux_weight * aux + consistency_weight * consistency + dice_weight * dice + lovasz_weight * lovasz.

    main is the cross-entropy of the main head, over hard pixels only with `ohem`; aux is the cross-entropy of the auxiliary head.
    Both weigh pixels by `class_weights`, one per class. Label 255 is ignored. The defaults are the published loss. ValueError for
    a weight that is negative or not finite, and for class weights that are all 0.
    """

    aux_weight: float = 0.4
    class_weights: tuple[float, ...] | None = None
    ohem: Ohem | None = None
    consistency_weight: float = 0.0
    dice_weight: float = 0.0
    lovasz_weight: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_weight") and not 0.0 <= value < float("inf"):
                raise ValueError(f"{field.name} = {value}: must be >= 0 and finite (0 leaves the term without effect)")
        if self.ohem is not None and not isinstance(self.ohem, Ohem):
            raise ValueError(f"ohem = {self.ohem!r}: must be ccnet.losses.Ohem(...) or None")
        weights = self.class_weights or (1.0,)
        if not all(0.0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise ValueError(f"class_weights = {weights}: must be >= 0 and finite, and one of them above 0")

    def terms(self, output: Output, label: Integer[Tensor, "B H W"], *, align_corners: bool = True) -> dict[str, Term]:
        """The terms by name, each with its own count, over this worker's part of the global batch.

        `align_corners` is that of the net (see `build_ccnet`).

        "main" is always a term; "dice" and "lovasz" are if their weight is above 0; "aux" and "consistency" are if the net has
        the head for them, even with weight 0, because DistributedDataParallel stops at parameters without a gradient. ValueError
        if `consistency_weight` is above 0 and the net has no embedding, and for another number of class weights than classes.
        """
        if self.consistency_weight > 0 and output.embedding is None:
            raise ValueError(
                f"consistency_weight = {self.consistency_weight}: the net has no embedding; "
                "build it with embedding_channels=16, or set consistency_weight to 0"
            )
        chosen = None if self.class_weights is None else torch.tensor(self.class_weights, dtype=torch.float64)
        weights = fitting_weights(chosen, output.logits)
        size = (label.shape[-2], label.shape[-1])
        # Resized once for all terms of the main scores.
        terms = self._score_terms(resize_logits(output.logits, size, align_corners=align_corners), label, weights)
        if output.aux_logits is not None:
            scores = resize_logits(output.aux_logits, size, align_corners=align_corners)
            terms["aux"] = (self.aux_weight, *cross_entropy(scores, label, class_weights=weights))
        if output.embedding is not None:
            num_classes = output.logits.shape[1]
            consistency = category_consistent(output.embedding, label, num_classes=num_classes, align_corners=align_corners)
            terms["consistency"] = (self.consistency_weight, *consistency)
        return terms

    def of_pass(self, num_passes: int) -> "Objective":
        """The objective of each of several passes over a global batch: they share OHEM's `min_kept` equally."""
        if self.ohem is None:
            return self
        return replace(self, ohem=replace(self.ohem, min_kept=self.ohem.min_kept // num_passes))

    def extent(self, label: Integer[Tensor, "B H W"]) -> Float64[Tensor, ""]:
        """Weight of a label relative to other labels: the number of its valid pixels, or the sum of their `class_weights`.

        It equals the count of plain cross-entropy, but is known before the network has run.
        """
        target = label.long()
        weights = None
        if self.class_weights is not None:
            weights = torch.tensor(self.class_weights, dtype=torch.float64).to(label.device, non_blocking=True)
        # An id that is no class would stop a GPU's process here; `train_step` refuses it later.
        counted = (target != 255) & (target >= 0) & (target < (255 if weights is None else len(weights)))
        return pixel_weights(target, counted, weights).sum(dtype=torch.float64)

    def _score_terms(self, scores: Tensor, label: Tensor, class_weights: Tensor | None) -> dict[str, Term]:
        """The terms of the main scores at the label's size."""
        if self.ohem is None:
            main = cross_entropy(scores, label, class_weights=class_weights)
        else:
            main = ohem_cross_entropy(scores, label, **vars(self.ohem), class_weights=class_weights)
        terms = {"main": (1.0, *main)}
        if self.dice_weight > 0:
            terms["dice"] = (self.dice_weight, *dice(scores, label))
        if self.lovasz_weight > 0:
            terms["lovasz"] = (self.lovasz_weight, *lovasz_softmax(scores, label))
        return terms


def mean(total: Float[Tensor, "*n"], count: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """total / count, or 0 where the count is 0: the mean of a term from its sum and count over all workers."""
    return total.double() * torch.where(count > 0, 1.0 / count, 0.0)


PUBLISHED = Objective()
"""Cross-entropy of the main head + 0.4 * cross-entropy of the auxiliary head (`CriterionDSN` of the published code)."""
