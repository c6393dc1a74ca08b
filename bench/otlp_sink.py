"""``python -m bench.otlp_sink PORT [--silent]``: a collector that takes everything over OTLP/HTTP and keeps nothing.

With ``--silent`` it takes connections and whatever is sent, and never answers. ``GET /`` says how much has come.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import msgspec

from bench import servers

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Sink:
    """Its connections, on one event loop."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._received: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its client hangs up."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length is not None else b""
                method, path, _ = head.decode("latin-1").split(" ", 2)
                answer = self._answer(method, path, len(body))
                if answer is not None:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, path: str, size_bytes: int) -> bytes | None:
        if method == "GET":
            return msgspec.json.encode(self._received)
        self._received[path] += 1
        self._received["bytes"] += size_bytes
        return None if self._silent else b""  # an empty body is an empty protobuf message


@asynccontextmanager
async def collecting(port: int, *, silent: bool = False) -> AsyncIterator[httpx.AsyncClient]:
    """A sink of its own process, so that it takes nothing from who measures. Gives a client of it."""
    command = (sys.executable, "-m", "bench.otlp_sink", str(port), *(("--silent",) if silent else ()))
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await _until_it_answers(client)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def _until_it_answers(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(servers.START_TIMEOUT_S):
        while True:
            try:
                await client.get("/")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return


async def _main(port: int, *, silent: bool) -> None:
    sink = Sink(silent=silent)
    async with await asyncio.start_server(sink.serve, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--silent", action="store_true")
    given = parser.parse_args()
    try:
        asyncio.run(_main(given.port, silent=given.silent))
    except KeyboardInterrupt:
        sys.exit(0)
