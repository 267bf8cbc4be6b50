"""The pictures of a validation show what they say: the worst images are the worst."""

import pytest
import torch

from pipeline.config.load import override
from pipeline.data.manifest import read_manifest
from pipeline.evaluation import evaluate, inference, panels
from pipeline.images import codec
from pipeline.loading.batches import evaluation_samples
from pipeline.storage.store import open_store
from tests.support import untrained
from tests.support.untrained import NUM_IMAGES

CPU = torch.device("cpu")


def test_the_worst_images_are_those_with_the_largest_share_of_wrong_pixels(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = untrained.make(tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("checkpoint"))
    manifest = read_manifest(open_store(config.data_url, config.storage))
    net, _ = inference.load_network(config, manifest)
    numbers, shares = list(range(NUM_IMAGES)), {}
    for sample in evaluation_samples(config, manifest, "val", numbers, config.evaluate.scale):
        predicted = inference.predict_image(net, sample.image, sample.label.shape, CPU, config.evaluate)[0].numpy()
        labelled = sample.label != codec.IGNORE
        shares[sample.number] = (predicted != sample.label)[labelled].mean()
    _, wrong = evaluate.evaluate_samples(
        net, evaluation_samples(config, manifest, "val", numbers, config.evaluate.scale), len(manifest.class_names), CPU
    )
    assert wrong == pytest.approx(shares)
    worst = evaluate.worst_images(wrong, NUM_IMAGES, 4, CPU)
    assert worst == sorted(shares, key=lambda number: -shares[number])[:4]
    assert evaluate.worst_images({}, 3, 4, CPU) == [0, 1, 2]
    pictures = panels.of_validation(config, manifest, net, CPU, worst)
    assert set(pictures) == {"panel", "worst_images", "attention"}
    one = panels.of_validation(override(config, {"evaluate.panel_images": 1}), manifest, net, CPU, worst[:1])
    assert one["worst_images"].shape == one["panel"].shape
    assert (one["worst_images"] != one["panel"]).any() == (worst[0] != 0)
