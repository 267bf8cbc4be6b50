"""Settings of jobs.benchmark."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Root, Section, Sides


class Pictures(Section):
    """Images generated for a measurement; they compress as well as photographs."""

    height: int = Field(ge=33)
    """Height in pixels."""
    width: int = Field(ge=33)
    """Width in pixels."""
    format: Literal["png", "jpeg"]
    """File format of the images; JPEG has quality 95."""
    crop_size: Sides
    """Training crop in pixels, one number or [height, width], each 8k + 1."""
    images: int = Field(256, ge=1)
    """Images that each stage processes in each round."""


class Benchmark(Section):
    of: tuple[Literal["images", "operator", "network", "launchers"], ...] = ("images",)
    """What is measured: the way of an image from the storage to the batch; the criss-cross operator, compared with other
    implementations; the training step, compared with the published one; Ray Train, compared with torchrun."""
    rounds: int = Field(3, ge=1)
    """Rounds. Each round runs each stage once; the report gives medians over the rounds."""
    images: int = Field(256, ge=1)
    """Images that each stage processes in each round."""
    cores: int | None = Field(None, ge=1)
    """Processes of each stage; by default one for each core that this process may use."""
    made: tuple[Pictures, ...] = ()
    """Data sets to generate and measure instead of the configuration's own."""
    stores: tuple[Root, ...] = ()
    """Folders or `s3://bucket/prefix` addresses to measure on, instead of storage.path alone."""
    step: bool = True
    """Measure the training step too."""
    maps: tuple[tuple[int, int, int, int], ...] = ((1, 512, 97, 97), (2, 512, 64, 128))
    """Batch, channels, height and width of the operator's feature maps: crops of 769 x 769 and of 512 x 1024 at stride 8."""
    steps: int = Field(10, ge=1)
    """Training steps in each round, for each network and each launcher."""
