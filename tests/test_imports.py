"""Imports run one way and each dependency has one door (design law); read from the source, nothing is run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOORS = {
    "cv2": {"pipeline/images/resize.py", "pipeline/images/augment.py"},
    "mlflow": {"pipeline/tracking/runs.py", "pipeline/tracking/registry.py", "pipeline/tracking/metric_log.py"},
    "fsspec": {"pipeline/storage/store.py"},
    "s3fs": {"pipeline/storage/store.py"},
    "botocore": {"pipeline/storage/store.py"},
    "pydantic": {
        "pipeline/config/base.py",
        "pipeline/config/data.py",
        "pipeline/config/train.py",
        "pipeline/config/config.py",
        "pipeline/config/load.py",
    },
}
LAYERS = {
    "ccnet": {"ccnet"},
    "pipeline": {"ccnet", "pipeline"},
    "jobs": {"pipeline", "jobs", "infra"},
    "infra": {"pipeline", "infra"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


SOURCES = sorted(p for folder in LAYERS for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    tops = {module.split(".")[0] for module in imports(path)}
    assert (tops & set(LAYERS)) <= LAYERS[name.split("/")[0]], f"{name} imports upwards"
    for package, doors in DOORS.items():
        assert package not in tops or name in doors, f"{name} imports {package}; its door is {sorted(doors)}"
    if name.startswith("ccnet/"):
        assert not tops & {"ray", "mlflow", "cv2", "pydantic", "fsspec", "s3fs"}


@pytest.mark.parametrize("module", ["plan", "transforms", "layouts"])
def test_the_order_and_the_images_do_not_need_ray(module: str) -> None:
    code = f"import sys, pipeline.{module}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("jobs.train", {"matplotlib", "mlflow"}),
        ("jobs.plan", {"matplotlib", "mlflow", "ray.data", "ray.train"}),
        ("jobs.prepare", {"matplotlib", "mlflow", "ray.data", "ray.train", "torch"}),
        ("jobs.evaluate", {"matplotlib", "mlflow", "ray.data", "ray.train"}),
        ("jobs.predict", {"matplotlib", "mlflow", "ray.data", "ray.train"}),
        ("pipeline.loading.ray_dataset", {"matplotlib", "mlflow", "torch"}),
        ("pipeline.checkpoints.retention", {"ray", "torch"}),
    ],
)
def test_a_command_imports_what_it_uses(module: str, unused: set[str]) -> None:
    """What the processes of a training import: tests/end_to_end/test_survival.py."""
    code = f"import sys, {module}; print(*{unused!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
