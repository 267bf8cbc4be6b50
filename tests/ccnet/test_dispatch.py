"""What computes the operator on which GPU. The GPUs are faked: their properties are what torch reports of them."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccnet import dispatch
from ccnet.step import DTYPES
from pipeline.config.load import load

GPUS = {  # compute capability, bytes of shared memory that a block may ask for (CUDA C programming guide, compute capabilities)
    "V100": ((7, 0), 96 * 1024),
    "T4, RTX 20xx": ((7, 5), 64 * 1024),
    "A100": ((8, 0), 163 * 1024),
    "RTX 30xx, A10": ((8, 6), 99 * 1024),
    "RTX 40xx, L4": ((8, 9), 99 * 1024),
    "H100": ((9, 0), 227 * 1024),
    "B200": ((10, 0), 227 * 1024),
    "RTX 50xx": ((12, 0), 99 * 1024),
}
TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture
def on(monkeypatch):
    """on(gpu): torch reports this GPU; what was chosen for another one is forgotten."""

    def pretend(name, **others):
        (major, minor), shared_memory = GPUS[name]
        gpu = {"name": name, "major": major, "minor": minor, "shared_memory_per_block": 48 * 1024}
        gpu = SimpleNamespace(**gpu | {"shared_memory_per_block_optin": shared_memory} | others)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        dispatch._kernels.cache_clear()

    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    yield pretend
    dispatch._kernels.cache_clear()


def kept(dtype):
    """Shape of what the operator keeps on the GPU for the backward pass of a map of 5 x 7."""
    with FakeTensorMode():
        arrays = [torch.empty(2, 5, 7, width, dtype=dtype, device="cuda:0") for width in (8, 8, 16)]
        return tuple(torch.ops.ccnet.criss_cross(*arrays)[1].shape)


OF_KERNELS, OF_PRODUCTS = (2, 5, 7, 2), (2 * 5 * 7 * (5 + 7),)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_run_from_capability_8_and_older_gpus_take_products(name, dtype, on):
    pytest.importorskip("triton")
    on(name)
    assert kept(dtype) == (OF_PRODUCTS if name in ("V100", "T4, RTX 20xx") else OF_KERNELS)


def test_the_precision_of_finetune_takes_products_on_a_t4(on):
    on("T4, RTX 20xx")
    precision = load("jobs/configs/finetune.yaml", []).train.precision
    assert precision == "fp16"
    assert kept(DTYPES[precision]) == OF_PRODUCTS


def test_too_little_shared_memory_takes_products(on):
    on("A100", shared_memory_per_block_optin=64 * 1024)
    assert kept(torch.float16) == OF_PRODUCTS


def test_kernels_can_be_switched_off(on, monkeypatch):
    on("H100")
    monkeypatch.setenv("CCNET_KERNELS", "off")
    assert kept(torch.bfloat16) == OF_PRODUCTS


def test_another_value_of_the_switch_is_refused(on, monkeypatch):
    on("H100")
    monkeypatch.setenv("CCNET_KERNELS", "no")
    with pytest.raises(ValueError, match="CCNET_KERNELS=no: must be `off`, or not set"):
        kept(torch.bfloat16)


def test_the_choice_and_its_reason_are_logged_once(on, caplog):
    on("T4, RTX 20xx")
    with caplog.at_level(logging.INFO, "ccnet"):
        kept(torch.float16), kept(torch.float16)
    assert caplog.messages == [
        "criss-cross attention on T4, RTX 20xx in float16: batched matrix products, because the kernels need "
        "compute capability 8.0, this GPU has 7.5"
    ]


@pytest.mark.parametrize(
    ("capability", "shared_memory", "options", "reason"),
    [
        ((9, 0), 232448, {}, None),
        ((9, 0), 232448, {"triton": False}, "Triton is not installed"),
        ((9, 0), 232448, {"switch": "off"}, "CCNET_KERNELS=off"),
        ((7, 5), 65536, {}, "the kernels need compute capability 8.0, this GPU has 7.5"),
        ((9, 0), 65536, {}, "the kernels need 98304 bytes of shared memory in a block, this GPU has 65536"),
    ],
)
def test_the_reason_names_what_is_missing(capability, shared_memory, options, reason):
    assert dispatch.reason_against(capability, shared_memory, torch.float16, **options) == reason
