"""Settings of the data: where the images are, how they are augmented, and how they reach the workers."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Name, Section, Sides, absolute

Id = Annotated[int, Field(ge=0, le=255)]


class Generated(Section):
    num_train: int = Field(192, ge=1)
    """Training images to generate."""
    num_val: int = Field(48, ge=1)
    """Validation images to generate."""
    size: int = Field(65, ge=33, le=16384)
    """Height and width in pixels."""


class ClassEntry(Section):
    id: Id | tuple[Id, ...]
    """Value of the class in the labels, or a list of values that are this class."""
    name: str | None = None
    """Name of the class; entries with the same name are one class. An ignored entry needs none."""
    color: tuple[Id, Id, Id] | None = None
    """[red, green, blue] in pictures, and in labels that are stored as colours; by default one of PASCAL VOC's."""
    ignore: bool = False
    """Leave its pixels out of loss and scores."""


class Data(Section):
    name: Name
    """Name of the packed data set; its shards lie under `<storage.path>/data/<name>`."""
    layout: Literal["generated", "camvid", "cityscapes", "ade20k", "voc", "folders"]
    """How the source is laid out; README shows the folders of each."""
    source: str | None = None
    """Folder or `s3://bucket/prefix` of the original images and labels; none for `generated`."""
    lists: dict[Literal["train", "val", "test"], str] = Field({})
    """Split -> text file with the samples, one a line: `image label` paths, or the image's name alone. A path in the source, or a
    full path or `s3://` address anywhere. By default the layout's own splits."""
    classes: tuple[ClassEntry, ...] | None = Field(None, min_length=1)
    """The classes, in place of the source's own table or of that of the layout."""
    label_suffix: str | None = Field(None, min_length=1)
    """What names of labels have after the name of their image, such as `_mask`; recognised where only one reading is possible."""
    val_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the training samples that becomes the split `val`, for a source without one; which ones, their names decide."""
    packed: bool = True
    """Pack the source into Parquet shards; false trains from the original objects in place."""
    shard_rows: int = Field(64, ge=1)
    """Images in one Parquet shard."""
    crop_size: Sides
    """Training crop in pixels, one number or [height, width]; each 8k + 1, so that features and pixels align."""
    scale: tuple[float, float] = (0.75, 2.0)
    """Range of the random scale (Cityscapes recipe of the paper), drawn in steps of 1/32; the published code draws from
    0.7, 0.8, ... 2.1."""
    scale_step: float | None = Field(None, gt=0)
    """Draw the scale from low, low + step, ... high instead (published code: 0.1)."""
    short_sides: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Draw the shorter side, in pixels, from these values instead of a scale (ADE20K recipe: 300, 375, 450, 525, 600)."""
    flip: bool = True
    """Mirror left-right with probability 1/2."""
    cat_max: float | None = Field(None, gt=0, le=1)
    """Draw up to ten positions of the crop, until no class fills this share or more of its labelled pixels (usual: 0.75)."""
    photometric: bool = False
    """Change brightness, contrast, saturation and hue at random."""
    augment: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`module:function` of your own, called after all this as function(image uint8[h, w, 3], label uint8[h, w], rng); rng is a
    generator that belongs to the sample. It returns both. The run key has its name, not its code: rename it when you change it.
    """
    oversample: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """Class name -> weight w: images with the class fill w / (1 + sum of weights) of each epoch; all images share the rest."""
    max_skipped: int = Field(0, ge=0)
    """Times that another sample may replace a missing or corrupt training sample before the run stops; each is reported."""
    stall_s: float = Field(60, gt=0)
    """Seconds without a batch after which the reason is determined and logged."""
    block_bytes: int = Field(16 * 2**20, ge=1)
    """Largest Ray Data block in bytes, unless one step of a worker needs more; larger blocks cost less per image but take more
    memory."""
    cpus_per_task: float = Field(0.5, gt=0)
    """Logical CPUs of one Ray Data task. With 0.5, a core runs one task while the result of another is passed on."""
    generated: Generated = Generated()

    @field_validator("source")
    @classmethod
    def _found_from_anywhere(cls, value: str | None) -> str | None:
        return value if value is None else absolute(value)

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"must be [low, high] with 0 < low <= high (try {sorted(max(v, 0.1) for v in value)})")
        return value

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.scale_step is not None:
            steps = (self.scale[1] - self.scale[0]) / self.scale_step
            if abs(steps - round(steps)) > 1e-6:
                high = self.scale[0] + max(1, round(steps)) * self.scale_step
                raise ValueError(
                    f"scale_step = {self.scale_step}: must divide scale {list(self.scale)} (try [{self.scale[0]}, {high:g}])"
                )
        return self

    @model_validator(mode="after")
    def _one_resize(self) -> Self:
        if self.short_sides and (self.scale != type(self).model_fields["scale"].default or self.scale_step is not None):
            raise ValueError("short_sides: replaces scale and scale_step (remove these two)")
        return self

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.layout == "generated" and not self.packed:
            raise ValueError("packed = false: generated images have no original files to read (try data.packed=true)")
        if self.layout != "generated" and not self.source:
            raise ValueError(f"source is missing: layout `{self.layout}` reads a folder or bucket; add data.source=FOLDER")
        return self
