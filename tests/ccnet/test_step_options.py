"""Options of a training step: it skips steps that are not finite, scales, clips, computes in half precision, averages."""

import pytest
import torch

from ccnet import build_optimizer, train_step
from ccnet.ema import Average
from tests.ccnet.tiny import infinite, state_of, tiny_batch, tiny_net, trained, unchanged


class Run:
    """The tiny net in float32 with its optimizer and average, trained one step at a time."""

    def __init__(self, **options):
        self.net = tiny_net().float()
        self.optimizer = build_optimizer(self.net, learning_rate=1.0, momentum=0.9, weight_decay=1e-4)
        self.average = Average(self.net, 0.8)
        self.options, self.next_step = options, 0

    def step(self, **options):
        image, label = tiny_batch(4)
        result = train_step(
            self.net, self.optimizer, image, label,
            learning_rate=0.1, seed=7, step=self.next_step, average=self.average, **self.options, **options,
        )  # fmt: skip
        self.next_step += 1
        return result

    def state(self):
        return state_of(self.net, self.optimizer, self.average)

    def moved(self):
        """The change of all weights since the start, as one vector."""
        before = dict(tiny_net().float().named_parameters())
        return torch.cat([(value - before[name]).detach().flatten() for name, value in self.net.named_parameters()])


def spoilt_gradient(logits):
    logits.register_hook(lambda gradient: gradient * float("nan"))
    return logits


def overflowing(logits):
    """Scores whose loss, summed over the pixels, overflows float32, and whose gradient does not."""
    return logits + torch.tensor([3e38, 0, 0, 0, 0]).view(1, 5, 1, 1)


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize("spoil", [infinite, spoilt_gradient, overflowing], ids=["both", "gradient", "loss"])
def test_what_is_not_finite_changes_nothing(spoil, micro_batch):
    run = Run(micro_batch=micro_batch)
    assert run.step().applied
    before, run.net.spoil = run.state(), spoil
    bad = run.step()
    assert not bad.applied
    assert bad.gradient_norm.isfinite().item() == (spoil is overflowing)
    assert bad.losses["loss"].isfinite().item() == (spoil is spoilt_gradient)
    after = run.state()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    run.net.spoil = unchanged
    assert run.step().applied
    assert not torch.equal(run.state()["net/main.weight"], before["net/main.weight"])


def test_one_workers_bad_row_skips_the_step_on_both(workers, within):
    for worker in [workers[0], *workers[1]]:
        results = worker["bad row"]
        assert [results[f"{step}/applied"].item() for step in range(3)] == [True, False, True]
        for name in (name[2:] for name in results if name.startswith(("0/net", "0/average", "0/momentum"))):
            assert torch.equal(results[f"1/{name}"], results[f"0/{name}"]), name
            within(results[f"2/{name}"], workers[0]["bad row"][f"2/{name}"], 1e-9)


def test_a_clipped_gradient_has_the_given_norm_and_the_same_direction():
    free = Run()
    norm = free.step().gradient_norm
    gradient = torch.cat([p.grad.flatten() for p in free.net.parameters()])
    assert (norm.dtype, norm.item()) == (torch.float64, pytest.approx(gradient.norm().item(), rel=1e-6))
    clipped = Run(clip_norm=norm.item() / 4)
    assert clipped.step().gradient_norm == norm
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in clipped.net.parameters()]), gradient / 4)
    above = Run(clip_norm=norm.item() * 1.01)
    above.step()
    assert torch.equal(torch.cat([p.grad.flatten() for p in above.net.parameters()]), gradient)


# About twice what a CPU gives for |difference of the weights' changes| / |change in float32| after four steps.
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.04), ("fp16", 0.001)])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_half_precision_trains_about_alike(precision, bound, micro_batch):
    whole = Run(micro_batch=micro_batch)
    scaler = torch.amp.GradScaler("cpu") if precision == "fp16" else None
    half = Run(micro_batch=micro_batch, precision=precision, scaler=scaler)
    dtypes = []
    half.net.main.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    for _ in range(4):
        assert whole.step().applied
        assert half.step().applied
    assert set(dtypes) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {value.dtype for value in half.net.parameters()} == {torch.float32}
    assert 0 < (half.moved() - whole.moved()).norm() <= bound * whole.moved().norm()


def test_a_scale_too_large_is_halved_until_the_gradients_fit():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run = Run(precision="fp16", scaler=scaler)
    before = Run().net.state_dict()
    result, skipped = run.step(), 0
    while not result.applied:
        assert all(torch.equal(value, before[name]) for name, value in run.net.state_dict().items())
        skipped += 1
        assert scaler.get_scale() == 2.0 ** (40 - skipped)
        assert result.losses["loss"].isfinite()
        result = run.step()
    assert 5 < skipped < 40
    assert scaler.get_scale() == 2.0 ** (40 - skipped)


def test_fp16_without_a_scaler_is_an_error():
    with pytest.raises(ValueError, match="precision = 'fp16': needs scaler="):
        Run(precision="fp16").step()


def test_a_float64_net_stays_float64():
    assert all(
        value.dtype == torch.float64 for value in trained(2, steps=1, precision="bf16").values() if value.is_floating_point()
    )


def test_the_average_takes_in_each_step():
    run = Run()
    average = Average(run.net, 0.8)
    for step in range(3):
        run.step()
        average.update(run.net, step)
    assert all(torch.equal(value, average.net.state_dict()[name]) for name, value in run.average.net.state_dict().items())
