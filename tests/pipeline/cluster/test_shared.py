"""What is not the same on every node is refused by every command before it starts."""

import re
from collections.abc import Iterator

import pytest

from tests.support.two_disks import MOUNTS, TwoDisks, two_disks


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoDisks]:
    with two_disks(tmp_path_factory.mktemp("two")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.skipif(not MOUNTS, reason="needs the right to mount, as root has it")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_what_is_not_the_same_on_every_node_is_refused_by_every_command_before_it_starts(nodes: TwoDisks) -> None:
    disk, fix = nodes.disk, "mount the same folder on every node, or use s3://BUCKET/PREFIX"
    (disk / "net.pth").touch()
    own = {"storage.path": disk, "model.weights": disk / "net.pth", "predict.images": disk / "set/images/train"}
    code, shown = nodes.run("plan", *(f"{key}={value}" for key, value in own.items()), f"tracking.uri=sqlite:///{disk}/mlflow.db")
    assert code == 1
    levels = {"storage.path": "error    ", "model.weights": "error    ", "predict.images": "warning  "}
    for key, value in own.items():
        assert re.search(
            rf"^{levels[key]}{key} = {value}: not the same on node \S+ \([\d.]+\) as here\n +fix: {fix}", shown, re.M
        )
    assert re.search(rf"^error    tracking.uri = {disk}: not the same on node .*\n +fix: the http:// address of a", shown, re.M)

    refused = rf"{disk}\S*: not the same on node \S+ \([\d.]+\) as here: {fix}"
    for verb, setting in {"prepare": f"data.source={disk}/set", "predict": f"predict.images={disk}/set/images/train"}.items():
        code, shown = nodes.run(verb, setting)
        assert code == 1
        assert re.fullmatch(rf"{setting.partition('=')[0]} = {refused}", shown.strip().splitlines()[-1]), shown
    code, shown = nodes.run("train", f"storage.path={disk}")
    assert code == 1
    assert f"storage.path = {disk}: not the same on node" in shown
    assert "Traceback" not in shown
    assert not [*disk.rglob(".shared-*"), *nodes.folder.glob(".shared-*")]
