"""``POST /admin/benchmark``: one at a time, and no more than a client could ask for."""

from __future__ import annotations

import logging

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from opta_router.dialects.body import decode
from opta_router.errors import BenchmarkRunning, ModelNotFound, UnsupportedMediaType
from opta_router.server import ON_DISCONNECT
from opta_router.service import Service

audit = logging.getLogger("opta_router.audit")


async def benchmark(request: Request, service: Service, who: str) -> Response:
    """Answers when it has ended; who leaves before that ends it."""
    from opta_router.benchmark import BenchmarkRequest, run_benchmark  # noqa: PLC0415 - prompts, for the few who ask

    body = await request.body()
    if body and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("the body must be declared as Content-Type: application/json")
    asked = decode(body or b"{}", BenchmarkRequest)
    config = service.config
    model = asked.model or config.models[0].name
    if model not in {entry.name for entry in config.models}:
        raise ModelNotFound(f"model {model[:100]!a} is not configured", param="model")
    try:
        service.benchmarking.acquire_nowait()
    except anyio.WouldBlock:
        raise BenchmarkRunning("a benchmark is running; ask again when it has ended") from None
    try:
        with anyio.CancelScope() as scope:
            request.scope["extensions"][ON_DISCONNECT](scope.cancel)
            audit.info("benchmark of model %s by %s", model, who)
            report = await run_benchmark(asked, model, config, service.dispatcher)
            return Response(msgspec.json.encode(report), media_type="application/json")
    finally:
        service.benchmarking.release()
    return Response(status_code=499)  # nobody is there to read it
