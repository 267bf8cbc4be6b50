"""A delivered model as MLflow's pyfunc flavor, which `mlflow.pyfunc.load_model` loads and `mlflow models serve` serves.

    masks = mlflow.pyfunc.load_model("models:/NAME@champion").predict({"image": Path("image.jpg").read_bytes()})["mask"]

The model holds the delivered folder and the code that predicts, so that it loads where this project is not installed. Nothing in
it is a pickle.
"""

import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ccnet
import pipeline
from pipeline.delivery import predictor
from pipeline.images import codec
from pipeline.images.files import read_header

if TYPE_CHECKING:
    from pandas import DataFrame

CODE = ("__init__.py", "errors.py", "images", "delivery")
"""What prediction needs of this package, besides ccnet."""
REQUIREMENTS = ("torch", "opencv-python", "safetensors", "numpy", "mlflow")
OPTIONS: dict[str, Any] = {"max_pixels": 2**24, "device": None}
"""`model_config` of `mlflow.pyfunc.load_model`, or JSON in MLFLOW_PYFUNC_INFERENCE_CONFIG: the largest image that is predicted,
and the device; null takes a GPU if there is one."""
IMAGE, MASK = "image", "mask"
"""Column of the input: files of images. Column of the result: PNG files uint8[H, W], value = number of the class from 0."""


class PyfuncModel:
    """What MLflow calls. `predictor.Model` is the same model for Python."""

    def __init__(self, model: predictor.Model, max_pixels: int) -> None:
        self._model = model
        self._max_pixels = max_pixels

    def predict(self, images: "DataFrame") -> "DataFrame":
        """A mask for each image. Raises MlflowException, which servers answer with status 400, for what is no such image."""
        from mlflow.exceptions import MlflowException
        from pandas import DataFrame

        masks = []
        for number, data in enumerate(images[IMAGE]):
            try:
                masks.append(codec.encode_png(self._mask(data)))
            except ValueError as error:
                raise MlflowException.invalid_parameter_value(f"image {number}: {error}") from error
        return DataFrame({MASK: masks})

    def _mask(self, data: bytes) -> codec.UInt8:
        header = read_header(data)  # before it is decoded: a small file can hold a picture that fills the memory
        if header.width * header.height > self._max_pixels:
            raise ValueError(
                f"{header.width} x {header.height} pixels: at most {self._max_pixels} are predicted: cut the image into tiles, "
                "or load the model with model_config={'max_pixels': ...}"
            )
        return self._model.predict(data)


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> PyfuncModel:
    """What MLflow calls to load the model; `data_path` is the delivered folder in it."""
    options = OPTIONS | dict(model_config or {})
    return PyfuncModel(predictor.load(data_path, options["device"]), int(options["max_pixels"]))


def save(path: Path, model_id: str, *, files: Mapping[str, bytes], run_id: str) -> None:
    """Writes the files of a delivered model as an MLflow model with code, signature and input example into a new folder."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # MLflow and pandas warn about each other: nothing that the user can change
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, Schema
        from pandas import DataFrame

        folder, code = Path(scratch, "model"), Path(scratch, "code")
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        _copy_code(code)
        mlflow.pyfunc.save_model(
            path,
            loader_module=__name__,
            data_path=folder,
            code_paths=[str(each) for each in sorted(code.iterdir())],
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            signature=ModelSignature(Schema([ColSpec(DataType.binary, IMAGE)]), Schema([ColSpec(DataType.binary, MASK)])),
            input_example=DataFrame({IMAGE: [_example()]}),
            pip_requirements=[_requirement(name) for name in REQUIREMENTS],
            model_config=dict(OPTIONS),
        )


def _copy_code(folder: Path) -> None:
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(ccnet.__file__).parent, folder / "ccnet", ignore=no_cache)
    source = Path(pipeline.__file__).parent
    (folder / "pipeline").mkdir()
    for name in CODE:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / "pipeline" / name, ignore=no_cache)
        else:
            shutil.copy(source / name, folder / "pipeline" / name)


def _example() -> bytes:
    """A PNG of 64 x 48 pixels: a ramp of each colour."""
    rows, columns = np.mgrid[0:48, 0:64]
    return codec.encode_png(np.stack([rows * 5, columns * 4, 255 - rows * 5], axis=-1).astype(np.uint8))


def _requirement(package: str) -> str:
    """The package at the version that is installed; any version if it is installed under another name, as OpenCV may be."""
    try:
        return f"{package}=={importlib.metadata.version(package).partition('+')[0]}"  # `2.13.0+cpu` is in no public index
    except importlib.metadata.PackageNotFoundError:
        return package
