"""Several hosts: what a submit, a training and its log survive when a cable is pulled."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.cluster.bed import unavailable
from tests.cluster.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]
CUT_S = 20.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("hosts")) as made:
        prepared = made.submit("prepare")
        output, _ = prepared.communicate(timeout=300)
        assert prepared.returncode == 0, output
        yield made


WHOLE_LOG = """
import json, os, sys, urllib.request
address = f"{os.environ['RAY_API_SERVER_ADDRESS']}/api/jobs/{sys.argv[1]}/logs"
request = urllib.request.Request(address, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
sys.stdout.write(json.load(urllib.request.urlopen(request))["logs"])
"""


def test_a_submit_whose_cable_is_pulled_loses_no_line_and_ends_with_the_code_of_the_job(cluster: Cluster) -> None:
    log = cluster.laptop.folder / "submit.log"
    words = ("train", "train.steps=24", "name=cut")
    process = cluster.submit(*words, log="submit.log")
    cluster.wait_for("the fifth step", lambda: "step 5/24 " in log.read_text(), 240)
    found = re.search(r"^(cut-[0-9a-f]{8}-1): python -m jobs.train", log.read_text(), re.MULTILINE)
    assert found
    job = found[1]
    code, answer = cluster.ask(cluster.laptop, *cluster.words(*words))
    assert (code, answer.splitlines()[-1]) == (2, f"{job} runs already: `python -m jobs.submit logs {job}` follows it")
    cluster.laptop.cut()
    time.sleep(CUT_S)
    assert process.poll() is None
    cluster.laptop.mend()
    assert process.wait(timeout=400) == 0, log.read_text()
    shown = log.read_text()
    head, _, shown = shown.partition(f"{job}: python -m jobs.train ")
    assert re.fullmatch(r"cluster http://[0-9.]+:8265 \(RAY_API_SERVER_ADDRESS\)\nsent \d+ files, .* MiB\n", head), head
    told = [line for line in shown.splitlines() if re.match("connection lost, trying again: |connected again$", line)]
    assert [line[:15] for line in told] == ["connection lost", "connected again"] * (len(told) // 2), "TCP may have outlasted it"
    mine = "".join(line for line in shown.splitlines(keepends=True)[1:] if line.rstrip() not in told)
    code, whole = cluster.ask(cluster.laptop, "-c", WHOLE_LOG, job)
    assert code == 0, whole
    assert mine == whole
    assert len(re.findall(r"^.*step \d+/24  loss", whole, re.MULTILINE)) == 24
    assert {node.address for node in cluster.nodes} == set(re.findall(r"ip=([0-9.]+), pid=\d+\) world_rank", whole)), "two nodes"
