"""Imports run one way and each dependency has one wing (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.config import Config

ROOT = Path(__file__).parents[1]
ROWS = (
    {"errors", "formatting", "images", "pipeline"},  # lowest row; `pipeline` means pipeline/__init__.py, the environment
    {"config"},
    {"storage", "cluster", "tracking"},
    {"data", "checkpoints", "fault_tolerance"},
    {"loading", "model", "delivery"},
    {"evaluation", "preflight", "benchmark"},
    {"reports", "serving"},
    {"training"},
    {"tuning", "start"},
    {"jobs"},
)
"""A wing imports itself and wings of lower rows, but no other wing of its row."""
DOORS = {
    "cv2": {"images"},
    "pydantic": {"config"},
    "fsspec": {"storage"},
    "s3fs": {"storage"},
    "botocore": {"storage"},
    "mlflow": {"tracking", "delivery"},  # in delivery only what runs inside MLflow's servers: delivery/pyfunc.py
    "safetensors": {"checkpoints", "delivery"},
    "matplotlib": {"evaluation"},
    "ray.data": {"data", "loading"},
    "ray.tune": {"tuning"},
    "ray.serve": {"serving"},
    "fastapi": {"serving"},
    "optuna": {"tuning"},
}
"""Package -> the wings that may import it."""
WITHOUT_RAY = {"images", "config", "storage", "tracking", "checkpoints", "model", "delivery", "formatting", "errors"}
"""Wings and files that must work without Ray."""
VERBS = {
    "start": "start",
    "prepare": "data",
    "plan": "preflight",
    "train": "training",
    "tune": "tuning",
    "sync": "training",
    "evaluate": "evaluation",
    "compare": "reports",
    "predict": "evaluation",
    "export": "evaluation",
    "benchmark": "benchmark",
    "serve": "serving",
}
"""jobs/VERB.py calls pipeline/WING/VERB.py."""
SECTIONS = {"faults": "train", "stop": "train", "loss": "model", "storage": "base", "tracking": "base", "predict": "evaluate",
            "export": "evaluate"}  # fmt: skip
"""Section -> its file in pipeline/config where that is not `<section>.py`."""
PIPELINE = sorted((ROOT / "pipeline").rglob("*.py"))
OTHERS = sorted(path for folder in ("ccnet", "jobs", "infra") for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wing_of(module: str) -> str:
    """`pipeline.data.index` -> `data`, `pipeline.errors` -> `errors`, `pipeline.LOOPBACK` -> `pipeline`, `jobs.cli` -> `jobs`."""
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return first if package == "pipeline" and any(first in row for row in ROWS) else package


def row_of(wing: str) -> int:
    return next(number for number, row in enumerate(ROWS) if wing in row)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_wing_imports_lower_rows_and_its_own_dependencies(path: Path) -> None:
    wing, found = wing_of(dotted(path)), imports(path)
    for module in found:
        if module.partition(".")[0] in ("pipeline", "jobs", "infra"):
            other = wing_of(module)
            assert other == wing or row_of(other) < row_of(wing), f"{wing} imports {module}, which is not in a lower row"
        for package, wings in DOORS.items():
            if f"{module}.".startswith(f"{package}."):
                assert wing in wings, f"{wing} imports {module}: only {sorted(wings)} may"
        assert module.partition(".")[0] != "ray" or wing not in WITHOUT_RAY, f"{wing} imports {module}: it must work without Ray"


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_imports_nothing_of_ours_and_infra_only_the_environment(path: Path) -> None:
    package, modules = path.relative_to(ROOT).parts[0], imports(path)
    if path == ROOT / "ccnet/__init__.py":
        modules = {each for each in modules if not each.startswith("pipeline.delivery.predictor")}  # when `ccnet.load` is called
    tops = {module.partition(".")[0] for module in modules}
    if package == "ccnet":
        assert not tops & {"pipeline", "jobs", "infra", "ray", "mlflow", "cv2", "pydantic", "fsspec", "s3fs"}
    if package == "infra":
        assert not tops & {"ray", "jobs"}
        assert {wing_of(module) for module in modules if module.startswith("pipeline")} <= {"pipeline"}
    if package == "jobs":
        assert not tops & set(DOORS)


@pytest.mark.parametrize("path", [path for path in PIPELINE if path.name == "__init__.py" and path.parent.name != "pipeline"],
                         ids=lambda path: path.parent.name)  # fmt: skip
def test_a_wing_describes_its_content_and_does_nothing_at_import(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(tree.body) == 1
    text = ast.get_docstring(tree) or ""
    assert "Entry: `" in text
    assert "Import" in text
    for entry in [name for name in text.partition("Entry: ")[2].split("`")[1::2] if "." in name]:
        module, name = entry.split(".")
        source = (path.parent / f"{module}.py").read_text()
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{entry} does not exist"


def test_wings_and_files_keep_their_size() -> None:
    for path in [*PIPELINE, *OTHERS]:
        number = len(path.read_text().splitlines())
        assert number <= 300, f"{path} has {number} lines: split it"
    for wing in {path.parent for path in PIPELINE}:
        assert len([path for path in wing.glob("*.py") if path.name != "__init__.py"]) <= 12, f"{wing} has too many files"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_calls_the_file_of_its_name(verb: str) -> None:
    assert f"pipeline.{VERBS[verb]}.{verb}" in imports(ROOT / "jobs" / f"{verb}.py")


def test_a_section_is_in_the_file_of_its_name() -> None:
    for section, field in Config.model_fields.items():
        if (module := field.annotation.__module__).startswith("pipeline."):  # type: ignore[union-attr]
            assert module == f"pipeline.config.{SECTIONS.get(section, section)}"


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        *[(f"jobs.{verb}", {"cv2", "mlflow", "ray", "torch"}) for verb in VERBS],  # so that a mistake is reported at once
        ("pipeline.training.train", {"matplotlib", "mlflow"}),
        ("pipeline.preflight.plan", {"matplotlib", "mlflow", "ray.data", "ray.train"}),
        ("pipeline.data.prepare", {"matplotlib", "mlflow", "ray.data", "ray.train", "torch"}),
        ("pipeline.evaluation.evaluate", {"matplotlib", "mlflow", "ray.data", "ray.train"}),
        ("pipeline.evaluation.predict", {"matplotlib", "mlflow", "ray.data", "ray.train"}),
        ("pipeline.loading.sampler", {"ray", "torch", "mlflow"}),
        ("pipeline.loading.feed", {"ray", "torch", "mlflow"}),
        ("pipeline.images.augment", {"ray", "torch", "mlflow"}),
        ("pipeline.data.layouts", {"ray", "torch", "mlflow"}),
        ("pipeline.loading.ray_dataset", {"matplotlib", "mlflow", "torch"}),
        ("pipeline.checkpoints.retention", {"ray", "torch"}),
    ],
)
def test_a_module_imports_what_it_uses(module: str, unused: set[str]) -> None:
    """tests/end_to_end/test_survival.py tests what the processes of a training import."""
    code = f"import sys, {module}; print(*{unused!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
