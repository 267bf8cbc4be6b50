"""The objective of a training run against the published two-headed losses."""

import pytest
import torch
import torch.nn.functional as F

from ccnet import Output
from ccnet.losses import PUBLISHED, Objective, Ohem, category_consistent, cross_entropy, mean

DTYPES = [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-5, 2e-5)]


def loss_of(terms):
    return sum(weight * total / count.clamp(min=1) for weight, total, count in terms.values())


@pytest.mark.parametrize(("dtype", "tolerance", "gradient_tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("name", "objective"),
    [("twohead_ce", PUBLISHED), ("twohead_ohem", Objective(ohem=Ohem(thresh=0.7, min_kept=640)))],
)
def test_two_headed_loss_equals_the_published_one(name, objective, dtype, tolerance, gradient_tolerance, golden, within):
    z = golden(name)
    main, aux = z["main"].to(dtype).requires_grad_(), z["aux"].to(dtype).requires_grad_()
    terms = objective.terms(Output(main, aux), z["labels"])
    for term in ("main", "aux"):
        _, total, count = terms[term]
        within(total / count, z[f"loss_{term}"], tolerance)
    loss = loss_of(terms)
    loss.backward()
    within(loss, z["loss"], tolerance)
    within(main.grad, z["g_main"], gradient_tolerance)
    within(aux.grad, z["g_aux"], gradient_tolerance)


def example():
    torch.manual_seed(0)
    return Output(torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5), torch.randn(2, 16, 5, 5)), torch.randint(0, 3, (2, 33, 33))


def test_terms_are_those_of_the_heads_and_of_the_weights():
    output, label = example()
    objective = Objective(consistency_weight=1.0, dice_weight=0.5, lovasz_weight=0.25)
    terms = objective.terms(output, label)
    assert {name: term[0] for name, term in terms.items()} == {
        "main": 1.0, "dice": 0.5, "lovasz": 0.25, "aux": 0.4, "consistency": 1.0,
    }  # fmt: skip
    assert terms["consistency"][1:] == category_consistent(output.embedding, label, num_classes=3)
    assert list(PUBLISHED.terms(Output(output.logits, None), label)) == ["main"]


def test_a_head_without_weight_is_still_a_term_so_that_its_parameters_get_a_gradient():
    output, label = example()
    terms = Objective(aux_weight=0.0).terms(output, label)
    assert (terms["aux"][0], terms["consistency"][0]) == (0.0, 0.0)


def test_class_weights_weigh_both_heads():
    output, label = example()
    terms = Objective(class_weights=(0.5, 2.0, 1.0)).terms(output, label)
    weights = torch.tensor([0.5, 2.0, 1.0])
    assert terms["main"][1:] == cross_entropy(output.logits, label, class_weights=weights)
    assert terms["aux"][1:] == cross_entropy(output.aux_logits, label, class_weights=weights)


def test_a_batch_without_valid_pixels_has_zero_loss_and_finite_gradients():
    output, label = example()
    output = Output(*(x.requires_grad_() for x in output))
    objective = Objective(ohem=Ohem(min_kept=0), consistency_weight=1.0, dice_weight=1.0, lovasz_weight=1.0)
    loss = loss_of(objective.terms(output, torch.full_like(label, 255)))
    loss.backward()
    assert loss == 0
    assert all((x.grad == 0).all() for x in output)


def test_a_consistency_weight_without_an_embedding_is_refused():
    output, label = example()
    with pytest.raises(
        ValueError, match=r"consistency_weight = 1.0: the net has no embedding; build it with embedding_channels=16"
    ):
        Objective(consistency_weight=1.0).terms(output._replace(embedding=None), label)


def test_class_weights_for_other_classes_are_refused():
    with pytest.raises(ValueError, match="class_weights has 2 values: must have one for each of 3 classes"):
        Objective(class_weights=(1.0, 2.0)).terms(*example())


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"dice_weight = -1.0: must be >= 0"):
        Objective(dice_weight=-1.0)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_class_weights_must_weigh_something(weights):
    with pytest.raises(ValueError, match=r"class_weights = .*: must be >= 0 and finite, and one of them above 0"):
        Objective(class_weights=weights)


def test_the_mean_of_nothing_is_zero():
    assert mean(torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)) == 0
    assert mean(torch.tensor(1.0), torch.tensor(0.25, dtype=torch.float64)) == 4


def test_class_weights_are_not_rounded_below_the_scores():
    logits, label = torch.randn(1, 3, 2, 2, dtype=torch.float64), torch.tensor([[[0, 1, 2]]])
    weights = (0.3, 2.0, 0.1)
    _, total, _ = Objective(class_weights=weights).terms(Output(logits, None), label)["main"]
    assert total == cross_entropy(logits, label, class_weights=torch.tensor(weights, dtype=torch.float64))[0]


def test_each_of_several_passes_mines_its_part_and_shares_the_rest():
    objective = Objective(aux_weight=0.1, ohem=Ohem(thresh=0.6, min_kept=1000))
    assert objective.of_pass(3) == Objective(aux_weight=0.1, ohem=Ohem(thresh=0.6, min_kept=333))
    assert PUBLISHED.of_pass(3) == PUBLISHED


def test_the_extent_of_a_label_is_the_count_of_cross_entropy():
    output, label = example()
    label[0, :7] = 255
    for objective in (PUBLISHED, Objective(class_weights=(0.5, 2.0, 1.0))):
        assert objective.extent(label) == objective.terms(output, label)["main"][2]
    assert PUBLISHED.extent(label) == (2 * 33 - 7) * 33
    assert PUBLISHED.extent(torch.full_like(label, 255)) == 0


def test_every_term_is_resized_as_the_network_was_trained():
    output = Output(*(torch.randn(2, channels, 4, 4).double() for channels in (3, 3, 16)))
    label = torch.randint(0, 3, (2, 32, 32))
    whole = Objective(ohem=Ohem(0.9, 64, 1), dice_weight=1.0, lovasz_weight=1.0)
    terms = whole.terms(output, label, align_corners=False)
    enlarged = [F.interpolate(x, (32, 32), mode="bilinear", align_corners=False) for x in output[:2]]
    cells = torch.stack([image[4::8, 4::8] for image in label])
    expected = whole.terms(Output(*enlarged), label) | {"consistency": (1.0, *category_consistent(output.embedding, cells))}
    assert {name: float(total) for name, (_, total, _) in terms.items()} == pytest.approx(
        {name: float(total) for name, (_, total, _) in expected.items()}
    )
    aligned = whole.terms(output, label)
    assert all(float(aligned[name][1]) != pytest.approx(float(terms[name][1])) for name in terms)
