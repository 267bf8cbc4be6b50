"""The service as its users meet it: a process, a token, a model by its alias, and clients of every kind."""

import contextlib
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

import ccnet
from infra.processes import free_port
from pipeline.config.load import parse
from pipeline.delivery.deliver import deliver
from pipeline.evaluation.figures import overlay
from pipeline.storage.store import Store
from pipeline.tracking import registry, runs
from tests.support.browser import CHROMIUM, QUIET
from tests.support.delivered import NOISE, facts, network
from tests.support.image_files import HEADER, decoded, hostile, huge, picture, turned
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow
TOKEN, MAX_BYTES, MAX_PIXELS = "open sesame", 2_000_000, 1_000_000


class Service(NamedTuple):
    port: int
    process: subprocess.Popen[str]
    lines: list[str]
    client: MlflowClient
    models: dict[int, Any]
    """Version of the registered model -> the model."""

    def ask(self, path: str, body: bytes | None = None, token: str | None = TOKEN, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def reason(self, body: bytes) -> tuple[int, str]:
        status, text = self.ask("/predict", body)
        return status, json.loads(text)["error"]

    def memory(self) -> int:
        """Bytes of the proxy and of the replica."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        named = [each for each in family if re.search("ray::(ProxyActor|ServeReplica)", " ".join(each.cmdline()))]
        assert len(named) == 2
        return sum(each.memory_info().rss for each in named)


@pytest.fixture(scope="module")
def service(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serving")
    config = parse({
        "name": "serve", "data": {"name": "g", "layout": "generated", "crop_size": 33}, "storage": {"path": str(folder)},
        "model": {"backbone": "small", "recurrence": 2}, "tracking": {"uri": mlflow_server.uri},
    })  # fmt: skip
    run_id, models = runs.open_mlflow_run(config, environment={}), {}
    for number, letter in enumerate("ab", 1):
        described = facts()
        described["origin"] |= {"checkpoint_sha256": letter * 64}
        place = deliver(Store(str(folder / f"model-{letter}")), network(number).state_dict(), described).address
        registry.register(mlflow_server.uri, run_id, "served", checkpoint_url=f"/runs/{letter}", miou=0.5 + number / 10,
                          protocol={}, sha256=letter * 64, model_url=place)  # fmt: skip
        models[number] = ccnet.load(place, device="cpu")
    client = MlflowClient(mlflow_server.uri)
    client.set_registered_model_alias("served", "live", "1")
    port = free_port(0)
    words = ["models:/served@live", "--port", str(port), "--max-bytes", str(MAX_BYTES), "--max-pixels", str(MAX_PIXELS)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {"MLFLOW_TRACKING_URI": mlflow_server.uri, "CCNET_SERVE_TOKEN": TOKEN}
    process = subprocess.Popen([sys.executable, "-m", "jobs.serve", *words], env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)  # fmt: skip
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line)
            if line.startswith("metrics"):
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(180), "".join(lines)
        assert process.poll() is None, "".join(lines)
        yield Service(port, process, lines, client, models)
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        process.stdout.close()  # type: ignore[union-attr]


def test_masks_are_those_of_the_model_and_the_overlay_is_drawn_with_them(service: Service) -> None:
    for data in (picture(), picture(".jpg"), turned(), picture(".webp"), picture(".bmp")):
        expected = service.models[1].predict(data)
        status, png = service.ask("/predict", data)
        assert status == 200
        np.testing.assert_array_equal(decoded(png), expected)
    status, png = service.ask("/predict?result=overlay", picture())
    expected = overlay(NOISE, service.models[1].predict(NOISE), service.models[1].colors)
    np.testing.assert_array_equal(cv2.cvtColor(decoded(png), cv2.COLOR_BGR2RGB), expected)


def test_it_says_what_it_is_and_only_to_those_who_have_the_token(service: Service) -> None:
    status, text = service.ask("/model")
    found = json.loads(text)
    assert (status, found["address"], found["classes"]) == (200, "models:/served@live", list(service.models[1].classes))
    assert found["checkpoint_sha256"] == "a" * 64
    for path, body in (("/model", None), ("/predict", picture()), ("/openapi.json", None)):
        assert service.ask(path, body, token=None)[0] == service.ask(path, body, token="guess")[0] == 401
    assert service.ask("/healthz", token=None) == (200, b'{"status":"ok"}')
    assert service.ask("/nowhere")[0] == 404
    assert service.ask("/predict")[0] == 405
    assert service.ask("/predict?result=everything", picture())[0] == 422


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """200 files that are no image, or one that must not be decoded."""
    yield from hostile().items()
    pictures = {kind: picture(kind) for kind in (".png", ".jpg", ".webp", ".bmp", ".tiff")} | {"turned": turned()}
    for kind, data in pictures.items():
        for part in range(1, 16):
            yield f"{part} of 16 of {kind}", data[: len(data) * part // 16]
        yield f"{kind} behind text", b"image: " + data
        yield f"{kind} of zeros", data[:10] + bytes(len(data))
    for side in (1_001, 4_000, 12_000, 16_000):
        yield f"{side} x {side}", huge(side, side)
    noise = np.random.default_rng(5)
    starts = (b"", HEADER, b"\xff\xd8\xff\xe0", b"BM", b"II*\0", b"MM\0*", b"RIFF....WEBPVP8 ", b"GIF89a")
    for number in range(82):
        yield f"noise {number}", starts[number % len(starts)] + noise.bytes(int(noise.integers(1, 5000)))


def test_200_hostile_inputs_are_answered_with_a_reason_and_cost_no_memory(service: Service) -> None:
    good, before = service.ask("/predict", picture()), service.memory()
    files = list(hostile_files())
    assert len(files) >= 200
    for name, data in files:
        status, error = service.reason(data)
        assert status in (400, 413), name
        assert len(error) > 10, name
    assert service.ask("/predict", picture()) == good
    assert service.memory() - before < 150e6


def test_a_body_that_is_too_large_is_refused_however_it_is_sent(service: Service) -> None:
    before = service.memory()
    for _ in range(3):
        assert service.reason(bytes(100 * MAX_BYTES))[0] == 413
    chunked = service.ask("/predict", (bytes(MAX_BYTES // 4) for _ in range(400)))  # type: ignore[arg-type]
    assert chunked[0] == 413
    assert service.memory() - before < 150e6
    assert service.ask("/predict", picture())[0] == 200


def test_the_largest_image_is_answered(service: Service) -> None:
    image = cv2.resize(NOISE, (1000, 1000), interpolation=cv2.INTER_NEAREST)
    status, png = service.ask("/predict", cv2.imencode(".png", image)[1].tobytes())
    assert (status, decoded(png).shape) == (200, (1000, 1000))
    status, error = service.reason(cv2.imencode(".png", cv2.resize(NOISE, (1001, 1000)))[1].tobytes())
    assert (status, error) == (413, "1001 x 1000 pixels: at most 1000000 are predicted: cut the image into tiles")


def test_when_too_many_wait_the_rest_is_told_so(service: Service) -> None:
    image = cv2.imencode(".png", cv2.resize(NOISE, (500, 500)))[1].tobytes()
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(lambda _: service.ask("/predict", image)[0], range(64)))
    assert {*answers} == {200, 503}
    assert answers.count(200) >= 32
    assert service.ask("/predict", image)[0] == 200


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium")
def test_the_page_shows_the_classes_of_an_image_that_is_dropped_on_it(service: Service, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "photo.jpg").write_bytes(turned())
    mask = service.models[1].predict(turned())
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://127.0.0.1:{service.port}/")
        page.locator("#error", has_text="Authorization: Bearer").wait_for()
        page.fill("#token", TOKEN)
        page.locator("#token").dispatch_event("change")
        page.locator("#model", has_text="models:/served@live: mIoU 0.5000 on 4 images of val").wait_for()
        page.set_input_files("#file", tmp_path / "photo.jpg")
        page.locator("#result").wait_for()
        size = page.evaluate("[document.querySelector('canvas').width, document.querySelector('canvas').height]")
        rows = page.locator("#legend tr").all_inner_texts()
        page.evaluate("document.querySelector('#opacity').value = 100")
        page.locator("#opacity").dispatch_event("input")
        canvas = "document.querySelector('canvas').getContext('2d')"
        shown = page.evaluate(f"[...{canvas}.getImageData(0, 0, ...{size}).data]")
        (tmp_path / "text.txt").write_text("no image")
        page.set_input_files("#file", tmp_path / "text.txt")
        page.locator("#error", has_text="text, not an image").wait_for()
        browser.close()
    assert not faults
    assert size == [mask.shape[1], mask.shape[0]]
    shares = {name: f"{100 * np.mean(mask == number):.1f} %" for number, name in enumerate(service.models[1].classes)}
    assert {tuple(row.split("\t")[-2:]) for row in rows} == {(name, share) for name, share in shares.items() if share != "0.0 %"}
    pixels = np.array(shown, np.uint8).reshape(*mask.shape, 4)[..., :3]
    np.testing.assert_array_equal(pixels, np.array(service.models[1].colors, np.uint8)[mask])


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_request_is_lost_when_the_alias_moves_or_vanishes(service: Service) -> None:
    answers: list[tuple[int, bytes]] = []
    masks = {number: service.models[number].predict(picture()).tobytes() for number in (1, 2)}
    assert masks[1] != masks[2]
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answers.append(service.ask("/predict", picture()))

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        until(lambda: len(answers) > 20)
        service.client.set_registered_model_alias("served", "live", "2")
        until(lambda: decoded(answers[-1][1]).tobytes() == masks[2])
        service.client.delete_registered_model_alias("served", "live")
        until(lambda: any("the model stays as it is" in line for line in service.lines))
        service.client.set_registered_model_alias("served", "live", "1")
        until(lambda: decoded(answers[-1][1]).tobytes() == masks[1])
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert {status for status, _ in answers} == {200}
    assert {decoded(png).tobytes() for _, png in answers} == {*masks.values()}


def test_prometheus_finds_what_was_predicted(service: Service) -> None:
    port = int(next(re.findall(r":(\d+)/metrics", line)[0] for line in service.lines if line.startswith("metrics")))

    @functools.cache
    def scraped() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

    def complete() -> bool:
        scraped.cache_clear()
        return all(name in scraped() for name in ("ray_ccnet_serve_pixels", "ray_ccnet_serve_network_seconds_count",
                                                  "ray_serve_http_request_latency_ms_count"))  # fmt: skip

    service.ask("/predict", picture())
    until(complete)


def test_it_ends_with_a_signal_and_leaves_no_process(service: Service) -> None:
    """The last test: the service is gone then."""
    family = psutil.Process(service.process.pid).children(recursive=True)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0
    until(lambda: not any(each.is_running() for each in family))
    assert service.lines[-1] == "stopped\n"
