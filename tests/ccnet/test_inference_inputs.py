"""Inputs of other kinds are taken or refused with the fix; scores that are not finite have no class."""

import pytest
import torch

from ccnet import build_ccnet
from ccnet.inference import ScoresNotFinite, predict_classes, predict_logits
from tests.ccnet.test_inference import FixedLogits, Strided


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_have_no_class(spoilt):
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, :, 2, 2] = spoilt
    image = torch.zeros(1, 3, 9, 9)
    for way in ({}, {"window": 5, "flip": True}, {"scales": (0.5, 1.0)}):
        with pytest.raises(ScoresNotFinite, match=r"the network's scores are not finite: .* \(a training that diverged"):
            predict_classes(FixedLogits(logits), image, **way)
    assert not predict_logits(FixedLogits(logits), image).isfinite().all(), "the scores themselves are shown"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda image: image / 255,
            r"image is torch.float32\[1, .* \(values 0 to 1: \(255 \* image\).round\(\).to\(torch.uint8\)\)",
        ),
        (
            lambda image: image.permute(0, 2, 3, 1),
            r"image is torch.uint8\[1, 40, 50, 3\]: .* \(channels first: image.permute\(0, 3",
        ),
        (lambda image: image[0], r"image is \[3, 40, 50\]: must be a tensor \[B, 3, H, W\] .* \(of one image: image\[None\]\)"),
        (lambda image: image[:, :, :0], r"image is \[2, 3, 0, 50\]: must be a tensor"),
        (lambda image: image.numpy(), "image is ndarray: must be a tensor"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_image_of_another_kind_is_refused_with_the_fix(change, message):
    photos = torch.zeros(2, 3, 40, 50, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        predict_classes(build_ccnet(backbone="small", num_classes=4, recurrence=1), change(photos))


@pytest.mark.usefixtures("unchecked")
def test_scales_count_in_any_order_and_a_size_may_be_a_list():
    net, image = Strided(), torch.randn(1, 3, 24, 24, dtype=torch.float64)
    rising = predict_logits(net, image, scales=(0.5, 1.0, 1.5), size=(9, 11))
    torch.testing.assert_close(predict_logits(net, image, scales=[1.5, 1.0, 0.5], size=[9, 11]), rising)
