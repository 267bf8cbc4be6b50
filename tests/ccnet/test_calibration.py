"""The calibration error: equal to its definition in plain numpy, and 0 for a network that is as good as it says."""

import math

import numpy as np
import pytest
import torch

from ccnet.calibration import BINS, Calibration
from ccnet.inference import predict_confidence


def drawn(seed: int, size: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Confidence, prediction and label uint8[2, size, size]; some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randint(0, 256, (2, size, size), generator=generator).to(torch.uint8)
    prediction, label = (torch.randint(0, 3, (2, size, size), generator=generator).to(torch.uint8) for _ in range(2))
    label[:, :5] = 255
    return confidence, prediction, label


def test_equals_its_definition():
    confidence, prediction, label = drawn(0)
    calibration = Calibration()
    calibration.update(confidence, prediction, label)
    valid = (label != 255).numpy()
    p, right = confidence.numpy()[valid] / 255, (prediction == label).numpy()[valid]
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.digitize(np.round(p, 12), np.round(edges, 12), right=True) - 1, 0, None)  # (low, high], 0 in the first
    expected = sum(abs(right[bins == m].mean() - p[bins == m].mean()) * (bins == m).mean() for m in range(BINS))
    assert calibration.error() == pytest.approx(expected, abs=1e-12)
    shares = calibration.bins()[2].numpy()
    assert shares == pytest.approx([(bins == m).mean() for m in range(BINS)])


def test_who_is_right_as_often_as_he_says_has_no_error_and_who_boasts_has_the_difference():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.full((1, 1000, 1000), 204, dtype=torch.uint8)  # 0.8
    label = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    for accuracy, error in ((0.8, 0.0), (0.5, 0.3), (1.0, 0.2)):
        calibration = Calibration()
        calibration.update(confidence, (torch.rand(label.shape, generator=generator) >= accuracy).to(torch.uint8), label)
        assert calibration.error() == pytest.approx(error, abs=2e-3)


def test_parts_add_up_to_the_whole_and_nothing_is_unknown():
    confidence, prediction, label = drawn(1)
    whole, parts = Calibration(), Calibration()
    assert math.isnan(whole.error())
    whole.update(confidence, prediction, label)
    for i in range(2):
        part = Calibration()
        part.update(confidence[i], prediction[i], label[i])
        parts.merge(part)
    assert torch.equal(parts.counts, whole.counts)
    assert int(whole.counts[0].sum()) == int((label != 255).sum())
    ignored = Calibration()
    ignored.update(confidence, prediction, torch.full_like(label, 255))
    assert math.isnan(ignored.error())


def test_it_takes_what_predict_confidence_gives():
    net = torch.nn.Conv2d(3, 4, 1)
    classes, confidence = predict_confidence(net, torch.rand(1, 3, 8, 8)).unbind(1)
    calibration = Calibration()
    calibration.update(confidence, classes, classes)
    assert calibration.counts[1].sum() == calibration.counts[0].sum() == 64
    assert calibration.error() == pytest.approx(1 - confidence.double().mean().item() / 255)


@pytest.mark.usefixtures("unchecked")
def test_another_shape_is_named():
    confidence, prediction, label = drawn(2)
    with pytest.raises(ValueError, match=r"confidence \(1, 60, 60\) and label \(2, 60, 60\)"):
        Calibration().update(confidence[:1], prediction, label)
