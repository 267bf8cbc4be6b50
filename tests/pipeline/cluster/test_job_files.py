"""What a job is sent is a list: nothing that lies beside it leaves this machine."""

from pathlib import Path

import pytest

from pipeline.cluster import job_files
from pipeline.cluster.job_files import PACKAGES, gather
from pipeline.errors import ClusterError

SECRETS = (
    ".env", ".stack/ray.token", ".stack/env", "key.pem", "kubeconfig.yaml", "jobs/configs/other.yaml", "infra/secret.yaml",
    "pipeline/.netrc", "pipeline/credentials.json", "data/000.png", "outputs/model.safetensors", ".git/config", ".venv/lib/x.py",
    "notes/private.py", "jobs/__pycache__/cli.cpython-311.pyc", ".aws/credentials",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a configuration, the user's modules, and what must stay."""
    root = tmp_path / "checkout"
    files = [f"{package}/{name}" for package in PACKAGES for name in ("__init__.py", "deep/er/code.py")]
    for name in (*files, *SECRETS, "jobs/configs/mine.yaml", "augment.py", "mine/__init__.py", "mine/crop.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def sent(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_code_and_the_named_files_are_sent_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    code = {f"{package}/{name}" for package in PACKAGES for name in ("__init__.py", "deep/er/code.py")}
    found = gather(checkout, checkout / "jobs/configs/mine.yaml", [], tmp_path / "a")
    assert sent(tmp_path / "a") == code | {"jobs/configs/mine.yaml", "augment.py"}
    assert found == (len(sent(tmp_path / "a")), sum(len(name) for name in sent(tmp_path / "a")))
    gather(checkout, checkout / "jobs/configs/mine.yaml", ["mine.crop"], tmp_path / "b")
    assert sent(tmp_path / "b") - sent(tmp_path / "a") == {"mine/__init__.py", "mine/crop.py"}


def test_a_link_that_leaves_the_checkout_is_not_followed(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (checkout / "pipeline/link.py").symlink_to(tmp_path / "secret")
    (checkout / "pipeline/inside.py").symlink_to(checkout / "augment.py")
    gather(checkout, checkout / "jobs/configs/mine.yaml", [], tmp_path / "a")
    assert "pipeline/link.py" not in sent(tmp_path / "a")
    assert (tmp_path / "a/pipeline/inside.py").read_text() == "augment.py"


def test_outside_of_a_checkout_and_above_the_limit_it_is_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match=r"is no checkout of this project \(no folder ccnet\): submit from there"):
        gather(tmp_path, tmp_path / "mine.yaml", [], tmp_path / "a")
    (checkout / "jobs/large.py").write_bytes(bytes(3_000_000))
    (checkout / "larger.py").write_bytes(bytes(4_000_000))
    monkeypatch.setattr(job_files, "MOST_BYTES", 6 * 2**20)
    with pytest.raises(
        ClusterError, match=r"are to be sent, at most 6\.?0? MiB may: largest are larger\.py \(.*\), jobs/large\.py"
    ):
        gather(checkout, checkout / "jobs/configs/mine.yaml", [], tmp_path / "a")
    assert not (tmp_path / "a").exists()
