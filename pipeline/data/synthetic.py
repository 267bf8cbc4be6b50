"""A generated data set whose labels need context: a lamp in a corner decides whether every shape is warm or cold.

Lamp and shapes lie in a grid of 3 x 3 cells with a wide gap behind the lamp's row and column of cells. The pixels of a shape are
the same under a warm and a cold lamp. At 129 pixels a network of backbone `small` and R passes of criss-cross attention

    R = 0   cannot see the lamp from any shape: the gap is wider than what it sees around a pixel,
    R = 1   can see it from the shapes in the lamp's row and column of cells, and from no other,
    R = 2   can see it from every shape.

tests/pipeline/data/test_synthetic.py checks this. A sample is a pure function of (seed, index, size).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

NAMES = ("background", "disc-cold", "disc-warm", "square-cold", "square-warm", "lamp")
COLORS = ((96, 96, 96), (0, 128, 255), (255, 128, 0), (0, 64, 128), (128, 32, 0), (255, 255, 128))
BACKGROUND, DISC, SQUARE, LAMP = 0, 1, 3, 5
"""Class ids; a warm shape's class is DISC + 1 or SQUARE + 1."""
VERSION = 2
"""Version of the pictures. Raise it when they are drawn differently: prepared data sets are then prepared again."""
SEED = 0
"""Seed of the data set. It is fixed, so that runs with different training seeds share the data."""

VAL_START = 2**32
CELL_SHARE = 0.186
"""Side of a cell of the grid, as a share of the image's: 24 of 129 pixels."""
LAMP_COLORS = {False: (40, 110, 255), True: (255, 140, 30)}


@dataclass(frozen=True)
class Shape:
    """A disc or a square within the box [top, top + side) x [left, left + side)."""

    kind: int
    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Scene:
    """The content of a picture. `warm` sets the lamp's colour and the class of every shape, nothing else."""

    warm: bool
    lamp: tuple[int, int, int]
    """(top, left, side) in pixels."""
    shapes: tuple[Shape, ...]


def split_index(split: str, position: int) -> int:
    """Sample index of a position in `train` or `val`; the two ranges never overlap."""
    return position + (VAL_START if split == "val" else 0)


def sample(index: int, seed: int, size: int) -> tuple[UInt8, UInt8]:
    """Image uint8[size, size, 3] RGB and label uint8[size, size] of class ids."""
    return render(draw(index, seed, size), index, seed, size)


def draw(index: int, seed: int, size: int) -> Scene:
    """Draws a scene: the lamp in one of the corners, shapes in six or seven of the other eight cells, at least one per kind."""
    random = _generator(seed, index, stream=0)
    warm, bottom, right = (bool(bit) for bit in random.integers(0, 2, 3))
    cell = round(CELL_SHARE * size)
    starts = (0, size - 2 * cell, size - cell)
    cells = [(top, left) for top in starts for left in starts if (top, left) != (0, 0)]
    chosen = random.permutation(len(cells))[: random.integers(6, 8)]
    kinds = random.permutation([DISC, SQUARE, *random.choice([DISC, SQUARE], len(chosen) - 2)])
    shapes = []
    for kind, place in zip(kinds, chosen, strict=True):
        edge = int(random.integers(round(0.85 * cell), cell + 1))
        shift = random.integers(0, cell - edge + 1, 2)
        top, left = (start + int(moved) for start, moved in zip(cells[place], shift, strict=True))
        shapes.append(Shape(int(kind), size - edge - top if bottom else top, size - edge - left if right else left, edge))
    return Scene(warm, (size - cell if bottom else 0, size - cell if right else 0, cell), tuple(shapes))


def render(scene: Scene, index: int, seed: int, size: int) -> tuple[UInt8, UInt8]:
    """Image uint8[size, size, 3] and label uint8[size, size]. The noise depends on seed and index, not on `scene.warm`."""
    random = _generator(seed, index, stream=1)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    image = _clouds(random, size)
    label = np.zeros((size, size), np.uint8)
    for shape in scene.shapes:
        inside, colors = _appearance(shape, rows, columns, random)
        image[inside] = colors[inside]
        label[inside] = shape.kind + scene.warm
    top, left, side = scene.lamp
    image[top : top + side, left : left + side] = LAMP_COLORS[scene.warm]
    label[top : top + side, left : left + side] = LAMP
    image += random.normal(0, 10, image.shape).astype(np.float32)
    image *= np.float32(random.uniform(0.75, 1.15))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, index << 1 | stream], np.uint64)))


def _clouds(random: np.random.Generator, size: int) -> Float32:
    """Grey texture float32[size, size, 3]: noise at two coarse scales."""
    texture = np.full((size, size), 110, np.float32)
    for block, strength in ((9, 18), (4, 12)):
        coarse = random.normal(0, strength, (-(-size // block),) * 2).astype(np.float32)
        texture += coarse.repeat(block, 0).repeat(block, 1)[:size, :size]
    return texture[..., None].repeat(3, 2)


def _appearance(
    shape: Shape, rows: Float32, columns: Float32, random: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], Float32]:
    """Mask bool[size, size] and colours float32[size, size, 3]: discs are plain green, squares violet with stripes."""
    y, x = rows - shape.top, columns - shape.left
    if shape.kind == DISC:
        centre = (shape.side - 1) / 2
        inside = (y - centre) ** 2 + (x - centre) ** 2 <= (shape.side / 2) ** 2
        color = np.array([60, 170, 80], np.float32) + random.normal(0, 12, 3).astype(np.float32)
        return inside, np.broadcast_to(color, (*rows.shape, 3))
    inside = (y >= 0) & (y < shape.side) & (x >= 0) & (x < shape.side)
    color = np.array([150, 70, 160], np.float32) + random.normal(0, 12, 3).astype(np.float32)
    stripes = np.where((x + y * random.choice([-1, 1])) % 6 < 3, np.float32(35), np.float32(-35))
    return inside, color + stripes[..., None]
