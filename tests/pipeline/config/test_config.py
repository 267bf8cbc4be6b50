"""Settings of one section that depend on those of another."""

from pipeline.config.load import parse
from tests.pipeline.config.test_load import mistakes, tree


def test_crops_of_8k_are_for_networks_of_mmsegmentation_that_do_not_align_corners() -> None:
    wrong = ["data.crop_size = 64: must be 8k + 1 and at least 17 (try 57 or 65)"]
    theirs = {"backbone": "resnet50", "recurrence": 2, "variant": "mmseg", "align_corners": False}
    assert parse(tree(data__crop_size=64, model=theirs, evaluate={"window": 64})).data.crop_size == (64, 64)
    assert mistakes(tree(data__crop_size=64, model=theirs | {"align_corners": None})) == wrong
    assert mistakes(tree(data__crop_size=64, model=theirs | {"variant": "official"})) == wrong
    assert mistakes(tree(evaluate={"window": 64})) == ["evaluate.window = 64: must be 8k + 1 and at least 17 (try 57 or 65)"]


def test_the_smallest_learning_rate_is_below_the_first() -> None:
    (line,) = mistakes(tree(train__min_lr=0.1))
    assert line == "train.min_lr = 0.1: above learning_rate = 0.01, from which the schedule falls (try 0.0001, or 0)"
