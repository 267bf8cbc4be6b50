"""Settings of jobs.benchmark."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Address, Section, Sides


class Pictures(Section):
    """Pictures made for a measurement, of the compressibility of photographs."""

    height: int = Field(ge=33)
    """Height in pixels."""
    width: int = Field(ge=33)
    """Width in pixels."""
    format: Literal["png", "jpeg"]
    """How they are encoded; JPEG of quality 95."""
    crop_size: Sides
    """Training crop in pixels, one number or [height, width], each 8k + 1."""
    images: int = Field(256, ge=1)
    """Images of each stage in each round."""


class Benchmark(Section):
    of: tuple[Literal["images", "operator", "network", "launchers"], ...] = ("images",)
    """What is measured: an image's way from the storage to the batch; the criss-cross operator beside others; the training step
    beside the published one; Ray Train beside torchrun."""
    rounds: int = Field(3, ge=1)
    """Rounds, each stage once in each; what is reported are medians over them."""
    images: int = Field(256, ge=1)
    """Images of each stage in each round."""
    cores: int | None = Field(None, ge=1)
    """Processes of each stage; by default the cores that this process may use."""
    made: tuple[Pictures, ...] = ()
    """Data sets to make and to measure instead of the configuration's own."""
    stores: tuple[Address, ...] = ()
    """Measure on each of these folders or `s3://bucket/prefix` instead of storage.path alone."""
    step: bool = True
    """Measure the training step as well."""
    maps: tuple[tuple[int, int, int, int], ...] = ((1, 512, 97, 97), (2, 512, 64, 128))
    """Batch, channels, height and width of the maps for the operator: crops of 769 x 769 and of 512 x 1024 at stride 8."""
    steps: int = Field(10, ge=1)
    """Training steps of each round, of the network and of each launcher."""
