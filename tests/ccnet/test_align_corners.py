"""A network that does not align corners, against mmsegmentation's own code."""

import torch

from ccnet.inference import predict_classes
from ccnet.losses import PUBLISHED
from ccnet.weights import from_mmseg
from tests.ccnet.test_weights import batch, checkpoint, network


def test_without_aligned_corners_masks_and_losses_are_those_of_mmsegmentation(golden, within):
    z = golden("mmseg_align_corners")
    net = network(from_mmseg(checkpoint("mmseg", "resnet50", int(z["seed"]))), align_corners=False)
    image = batch(z["resnet50_image"])
    assert torch.equal(predict_classes(net, image)[0], z["resnet50_whole"])
    assert torch.equal(predict_classes(net, image, window=32, stride=22)[0], z["resnet50_slide"])
    with torch.no_grad():
        terms = PUBLISHED.terms(net(image), z["resnet50_label"][None], align_corners=net.align_corners)
    losses = [weight * total / count for weight, total, count in (terms["main"], terms["aux"])]
    within(torch.stack(losses), z["resnet50_loss"], 1e-9)
    net.align_corners = True
    assert not torch.equal(predict_classes(net, image)[0], z["resnet50_whole"])
