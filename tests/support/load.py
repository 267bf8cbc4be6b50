"""Puts a service under load: `python -m tests.support.load URL IMAGE [SECONDS] [CLIENTS]`.

Each client sends the image again as soon as it has its mask. Prints the rate, the median and the 99th percentile of the time of
an answer, and how many answers were not 200; ends with 1 if there was one. The token is that of CCNET_SERVE_TOKEN.
"""

import http.client
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np


def main(url: str, image: str, seconds: str = "60", clients: str = "4") -> int:
    """Runs the command line."""
    data, took, failed = Path(image).read_bytes(), list[float](), list[str]()
    token = os.environ.get("CCNET_SERVE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    started = time.monotonic()

    def ask() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=90)
        while time.monotonic() < started + float(seconds):
            before = time.monotonic()
            connection.request("POST", "/predict", data, headers)
            answer = connection.getresponse()
            text = answer.read()
            took.append(time.monotonic() - before)
            if answer.status != 200:
                failed.append(f"{answer.status} {text[:200]!r}")
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(int(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.monotonic() - started
    median, high = 1000 * np.percentile(took, [50, 99])
    rate = f"{len(took)} answers, {len(took) / passed:.1f}/s"
    print(f"{clients} clients, {passed:.0f} s: {rate}, p50 {median:.0f} ms, p99 {high:.0f} ms")
    print(f"not 200: {len(failed)}", *failed[:3])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
