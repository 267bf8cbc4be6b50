"""A TCP proxy that breaks each connection after a time."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class BreakingProxy:
    """`with BreakingProxy(url, seconds) as proxy:` forwards `proxy.url` to `url`; no connection lives longer than `seconds`."""

    def __init__(self, url: str, seconds: float) -> None:
        there = urlsplit(url)
        self._there, self._seconds, self.broken = (there.hostname, there.port), seconds, 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            server = socket.create_connection(self._there)
            pumps = [threading.Thread(target=self._pump, args=ends) for ends in ((client, server), (server, client))]
            pumps.append(threading.Thread(target=self._break, args=(pumps[:], client, server)))
            for pump in pumps:
                pump.start()
            self._threads += pumps

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _break(self, pumps: list[threading.Thread], *ends: socket.socket) -> None:
        pumps[0].join(self._seconds)
        self.broken += pumps[0].is_alive()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for pump in pumps:
            pump.join()
        for end in ends:
            end.close()
