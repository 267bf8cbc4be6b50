"""Predicted scores and classes equal those of a naive implementation, which holds every score at full resolution."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccnet import Output, build_ccnet
from ccnet.inference import predict_classes, predict_confidence, predict_logits
from ccnet.losses import resize_logits
from ccnet.scheme import published_stride


class Strided(nn.Module):
    """One convolution, by default at output stride 8, on an image that is taken as normalised."""

    def __init__(self, num_classes: int = 5, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 5, stride=8, padding=2, dtype=dtype)

    def normalise(self, image: Tensor) -> Tensor:
        return image.to(self.conv.weight.dtype)

    def scores(self, x: Tensor) -> Output:
        return Output(self.conv(x), None)


def tiles_averaged(net, x, window, stride):
    """Sum of the tiles' scores at full resolution, divided by the number of tiles on each pixel."""
    (height, width), (tile_height, tile_width) = x.shape[-2:], window
    padded = F.pad(x, (0, max(0, tile_width - width), 0, max(0, tile_height - height)))
    total = count = torch.zeros(1, 1, *padded.shape[-2:], dtype=x.dtype)
    for row in range(max(1, ceil((height - tile_height) / stride[0]) + 1)):
        for col in range(max(1, ceil((width - tile_width) / stride[1]) + 1)):
            top = min(row * stride[0], padded.shape[-2] - tile_height)
            left = min(col * stride[1], padded.shape[-1] - tile_width)
            right, below = padded.shape[-1] - left - tile_width, padded.shape[-2] - top - tile_height
            tile = padded[..., top : top + tile_height, left : left + tile_width]
            placed = F.pad(resize_logits(net.scores(tile).logits, window), (left, right, top, below))
            total = total + placed
            count = count + F.pad(torch.ones(window, dtype=x.dtype), (left, right, top, below))
    return (total / count)[..., :height, :width]


@torch.no_grad()
def naive(net, image, *, window=None, stride=None, scales=(1.0,), flip=False, size=None):
    """The definition in predict_logits' docstring, written out."""
    x = net.eval().normalise(image)
    total, size = 0, size or image.shape[-2:]
    for scale in scales:
        scaled = [max(1, round(scale * length)) for length in image.shape[-2:]]
        x_scaled = F.interpolate(x, size=scaled, mode="bilinear", align_corners=True)
        for mirror in (False, True) if flip else (False,):
            seen = x_scaled.flip(-1) if mirror else x_scaled
            scores = net.scores(seen).logits if window is None else tiles_averaged(net, seen, window, stride)
            resized = resize_logits(scores, size)
            total = total + (resized.flip(-1) if mirror else resized)
    return total / (len(scales) * (1 + flip))


WAYS = {
    "whole": {},
    "whole at another size": {"size": (90, 31)},
    "whole at fewer pixels": {"size": (3, 1)},
    "windows": {"window": (17, 25), "stride": (12, 12)},
    "windows at another size": {"window": (17, 25), "stride": (9, 20), "size": (90, 31)},
    "windows side by side": {"window": (17, 25), "stride": (17, 25)},
    "every window": {"window": (17, 17), "stride": (1, 1)},
    "scales": {"scales": (0.5, 1.0, 1.75)},
    "flip": {"flip": True},
    "all": {"window": (17, 25), "stride": (5, 7), "scales": (0.3, 1.25), "flip": True, "size": (61, 40)},
}


@pytest.mark.parametrize("image_size", [(40, 67), (33, 17), (20, 9), (5, 8), (1, 1)])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_equals_the_naive_way(way, image_size, dtype, tolerance, within):
    torch.manual_seed(0)
    net, image = Strided(dtype=dtype), torch.randn(2, 3, *image_size, dtype=dtype)
    expected = naive(net, image, **way)
    actual = predict_logits(net, image, **way)
    assert actual.dtype == dtype
    within(actual, expected, tolerance)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_classes_are_the_arg_max_of_the_scores(way):
    torch.manual_seed(0)
    net, image = Strided(), torch.randn(2, 3, 40, 67, dtype=torch.float64)
    assert torch.equal(predict_classes(net, image, **way), naive(net, image, **way).argmax(1).to(torch.uint8))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_confidence_is_the_probability_of_the_class(way):
    torch.manual_seed(0)
    net, image = Strided(), torch.randn(2, 3, 40, 67, dtype=torch.float64)
    found, probabilities = predict_confidence(net, image, **way), naive(net, image, **way).softmax(1)
    assert torch.equal(found[:, 0], predict_classes(net, image, **way))
    assert torch.equal(found[:, 1], (255 * probabilities.amax(1)).round().to(torch.uint8))


@pytest.mark.parametrize("block_bytes", [1, 5 * 67 * 8 * 7, 2**24])
def test_the_size_of_a_block_changes_nothing(block_bytes, monkeypatch, within):
    monkeypatch.setattr("ccnet.inference.BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    net, image = Strided(), torch.randn(1, 3, 40, 67, dtype=torch.float64)
    within(predict_logits(net, image, **WAYS["all"]), naive(net, image, **WAYS["all"]), 1e-9)


def test_one_class_is_class_0():
    prediction = predict_classes(Strided(num_classes=1), torch.randn(1, 3, 9, 9, dtype=torch.float64))
    assert torch.equal(prediction, torch.zeros(1, 9, 9, dtype=torch.uint8))


@pytest.mark.parametrize("case", ["exact", "pad", "wide"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-7), (torch.float32, 2e-5)])
def test_windows_equal_the_published_ones(case, dtype, tolerance, golden, within):
    z = golden(f"sliding_{case}")  # the published scores are stored as float32, hence 2e-7
    net = Strided(dtype=dtype)
    net.conv = nn.Conv2d(3, len(z["net_b"]), 5, stride=z["net_stride"].item(), padding=2, dtype=dtype)
    net.conv.load_state_dict({"weight": z["net_w"], "bias": z["net_b"]})
    scores = predict_logits(net, z["image"].to(dtype), window=tuple(z["tile"].tolist()))
    within(scores.movedim(1, -1), z["scores"], tolerance)


class Ramp(Strided):
    """Scores each pixel by its value plus its column in the input."""

    def scores(self, x: Tensor) -> Output:
        return Output(x + torch.arange(x.shape[-1]), None)


def test_flip_mirrors_left_and_right():
    image = torch.arange(3 * 4 * 5, dtype=torch.float64).view(1, 3, 4, 5)
    torch.testing.assert_close(predict_logits(Ramp(), image), image + torch.arange(5.0))
    torch.testing.assert_close(predict_logits(Ramp(), image, flip=True), image + 2.0)


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes that tensors created inside it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {storage: size for storage, size in self.alive.items() if not storage.expired()}
        self.bytes = max(self.bytes, sum(self.alive.values()))
        return result


def test_classes_are_found_without_all_scores_at_full_resolution():
    net, image = Strided(150, dtype=torch.float32), torch.zeros(1, 3, 1024, 2048, dtype=torch.uint8)
    all_scores = 150 * 1024 * 2048 * 4
    for way in {}, {"window": 769, "scales": (0.5, 1.0), "flip": True}:
        with PeakMemory() as peak:
            predict_classes(net, image, **way)
        assert peak.bytes < all_scores / 4
    with PeakMemory() as peak:
        naive(net, image)
    assert peak.bytes > all_scores


@pytest.fixture(scope="module")
def ccnet():
    torch.manual_seed(0)
    return build_ccnet(backbone="resnet18", num_classes=4, recurrence=1).eval()


@pytest.fixture
def photos():
    return torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_ccnet_takes_uint8(ccnet, photos, within):
    expected = naive(ccnet, photos, window=(33, 33), stride=(23, 23), scales=(1.0, 1.5), flip=True)
    way = {"window": 33, "scales": (1.0, 1.5), "flip": True}
    within(predict_logits(ccnet, photos, **way), expected, 1e-5)
    assert (predict_classes(ccnet, photos, **way) == expected.argmax(1)).float().mean() > 0.999


class FixedLogits(nn.Module):
    """Returns the same scores for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


def test_any_module_from_images_to_scores_will_do(within):
    net, image = Strided(), torch.randn(1, 3, 40, 67, dtype=torch.float64)
    expected = naive(net, image, window=(17, 25), stride=(12, 12))
    within(predict_logits(net.conv, image, window=(17, 25), stride=12), expected, 1e-12)


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel])
def test_raw_pixels_into_a_wrapper_that_hides_the_normalisation_are_an_error(ccnet, photos, wrap):
    with pytest.raises(ValueError, match=r"has no normalise: pass the CCNet itself"):
        predict_classes(wrap(ccnet), photos)


def test_an_empty_batch_and_too_many_classes_are_errors(ccnet):
    with pytest.raises(ValueError, match="of at least one image"):
        predict_classes(ccnet, torch.zeros(0, 3, 40, 50, dtype=torch.uint8))
    with pytest.raises(ValueError, match="300 classes: do not fit a uint8"):
        predict_classes(FixedLogits(torch.zeros(1, 300, 2, 2)), torch.zeros(1, 3, 9, 9))


def test_a_large_map_is_resized_as_in_training(within):
    """Even the rounding of float32 positions is equal, which moves scores of up to 20 by 2e-4 at this size."""
    logits = 5 * torch.randn(1, 2, 129, 257)
    expected = resize_logits(logits, (1024, 2048))
    within(predict_logits(FixedLogits(logits), torch.zeros(1, 3, 1024, 2048)), expected, 1e-6)


def test_autocast_rounds_the_scores_of_the_net_alone(ccnet, photos, within):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = resize_logits(ccnet(photos[:1]).logits, (40, 50))
        actual = predict_logits(ccnet, photos[:1])
    assert actual.dtype == torch.float32
    within(actual, expected, 1e-5)


def test_a_prediction_does_not_depend_on_the_rest_of_its_batch(ccnet, photos):
    both = predict_logits(ccnet, photos, window=33)
    assert torch.equal(both[1:], predict_logits(ccnet, photos[1:], window=33))


def test_the_net_is_put_into_evaluation_mode_and_keeps_no_graph():
    net = Strided().train()
    logits = predict_logits(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert not net.training
    assert not logits.requires_grad


def test_a_wrapped_net_is_an_error():
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    with pytest.raises(ValueError, match=r"pass net\.module"):
        predict_classes(wrapped, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (8, 8))


@pytest.mark.parametrize(
    ("window", "stride"), [((769, 769), (513, 513)), ((33, 49), (23, 23)), ((9, 9), (7, 7)), ((8, 5), (6, 5))]
)
def test_the_published_stride_is_two_thirds_in_floating_point_and_leaves_no_pixel_out(window, stride):
    assert published_stride(window) == stride


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"window": 0}, "window = 0: must be at least 1"),
        ({"window": (9, -1)}, r"window = \(9, -1\): must be at least 1"),
        ({"window": 9, "stride": 0}, r"stride = 0: .*try \(1, 1\)"),
        ({"window": 9, "stride": (9, 10)}, r"stride = \(9, 10\): .*skips pixels \(try \(9, 9\)\)"),
        ({"window": (8, 5), "stride": 6}, r"stride = 6: .*try \(6, 5\)"),
        ({"stride": 9}, "stride = 9 without a window"),
        ({"scales": ()}, r"scales = \(\): must be one or more"),
        ({"scales": (1.0, 0.0)}, r"scales = \(1.0, 0.0\): must be one or more numbers > 0"),
        ({"scales": 1.0}, r"scales = 1.0: must be one or more numbers > 0, in a sequence \(try \(1.0,\)\)"),
        ({"window": 32.0}, r"window = 32.0: must be an integer, or two as \(height, width\)"),
        ({"window": 9, "stride": (4,)}, r"stride = \(4,\): must be an integer, or two"),
        ({"window": "auto"}, "window = 'auto': must be an integer"),
        ({"window": True}, "window = True: must be an integer"),
        ({"size": 65}, r"size = 65: must be \(height, width\) in pixels"),
        ({"size": "65"}, r"size = '65': must be \(height, width\) in pixels"),
        ({"size": (65,)}, r"size = \(65,\): must be"),
        ({"size": (65, 0)}, r"size = \(65, 0\): must be"),
        ({"size": (65.0, 65.0)}, r"size = \(65.0, 65.0\): must be"),
        ({"scales": (-1.0,)}, r"scales = \(-1.0,\): must be one or more numbers > 0"),
        ({"scales": (float("nan"),)}, r"scales = \(nan,\): must be one or more numbers > 0"),
        ({"scales": "1.0"}, "scales = '1.0': must be one or more numbers > 0"),
        ({"scales": ("1",)}, r"scales = \('1',\): must be one or more numbers > 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_setting_out_of_range_is_an_error(way, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(Strided(), torch.zeros(1, 3, 8, 8, dtype=torch.float64), **way)
