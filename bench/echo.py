"""``python -m bench.echo PORT FILE``: Starlette on Hypercorn with nothing else, the least that an answer can cost.

Reads the request's body and answers with the bytes of FILE. Both have their defaults, but that a connection is not
closed after a thousand requests.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def build_app(answer: bytes) -> Starlette:
    """An application that says ``answer`` to everything that is posted."""

    async def echo(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    async def ready(_request: Request) -> Response:
        return Response()

    return Starlette(routes=[Route("/v1/chat/completions", echo, methods=["POST"]), Route("/readyz", ready)])


def main(port: int, file: Path) -> None:
    """Serve until told to stop."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.keep_alive_max_requests = 2**31
    asyncio.run(serve(build_app(file.read_bytes()), config))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
