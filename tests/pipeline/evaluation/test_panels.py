"""The pictures of a validation show what they say: the worst images are the worst."""

import pytest
import torch

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
    num_classes = len(manifest.class_names)
    samples = evaluation_samples(config, manifest, "val", numbers, config.evaluate.scale)
    _, seen = evaluate.evaluate_samples(net, samples, num_classes, CPU)
    assert {number: each.wrong for number, each in seen.items()} == pytest.approx(shares)
    worst = evaluate.worst_images(seen, NUM_IMAGES, 4, CPU)
    assert worst == sorted(shares, key=lambda number: -shares[number])[:4]
    assert evaluate.worst_images({}, 3, 4, CPU) == [0, 1, 2]
    examples = evaluate.example_images(seen, NUM_IMAGES, 4, num_classes, CPU)
    pictures = panels.of_validation(config, manifest, net, CPU, examples, worst)
    assert set(pictures) == {"panel", "worst_images", "attention"}
    one = panels.of_validation(config, manifest, net, CPU, examples[:1], worst[:1])
    assert one["worst_images"].shape == one["panel"].shape
    assert (one["worst_images"] != one["panel"]).any() == (worst[0] != examples[0])


def test_examples_show_each_class_as_large_as_they_can_and_no_image_twice() -> None:
    # Classes: everywhere, in images 1 and 3, in image 3 alone as small, in image 4 alone. Images 5 to 7 show nothing new.
    areas = [[90, 0, 0, 0], [50, 40, 0, 0], [100, 0, 0, 0], [60, 30, 3, 0], [80, 0, 0, 20], *[[70, 0, 0, 0]] * 3]
    seen = {number: evaluate.Seen(0.0, torch.tensor(each)) for number, each in enumerate(areas)}
    assert evaluate.example_images(seen, 8, 1, 4, CPU) == [3], "three of the classes"
    assert evaluate.example_images(seen, 8, 4, 4, CPU) == [3, 4, 1, 2]
    assert sorted(evaluate.example_images(seen, 8, 20, 4, CPU)) == list(range(8))
    assert evaluate.example_images({}, 2, 4, 3, CPU) == [0, 1], "nothing is labelled"


def test_of_a_large_split_examples_come_from_images_spread_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CANDIDATES", 4)
    seen = {number: evaluate.Seen(0.0, torch.tensor([number, 10 - number])) for number in range(10)}
    assert sorted(evaluate.example_images(seen, 10, 9, 2, CPU)) == [0, 3, 6, 9]
    assert sorted(evaluate.example_images(seen, 10, 2, 2, CPU)) == [0, 9]
