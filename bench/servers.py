"""Servers under measurement, each started as its users start it, from what is installed, on the same weights."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Final

import anyio
import httpx
import msgspec
from anyio.abc import Process

from lanes import embedded
from lanes.blas import preload_environment

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 40.0
LITELLM_VERSION: Final = "1.108.7"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """How one server is started, and what it calls things. ``{port}`` stands in ``command`` for the port."""

    name: str
    command: tuple[str, ...]
    model: str
    ready_path: str
    environment: dict[str, str] = {}
    interactive_headers: dict[str, str] = {}
    background_headers: dict[str, str] = {}


class Weights(msgspec.Struct, frozen=True):
    """Directories of the pair, in the type that this device is fast in."""

    target: Path
    draft: Path


@contextmanager
def fp32_weights() -> Iterator[Weights]:
    """The embedded pair in fp32: our host turns it into that on a CPU, and the others get the same start."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        for part in embedded.PARTS:
            # In a process of its own: this one measures, and mlx-lm would stay in its memory.
            command = [sys.executable, "-m", "bench.dequantise", str(embedded.path(part)), f"{scratch}/{part}"]
            subprocess.run(command, check=True, capture_output=True)
        yield Weights(Path(scratch) / "target", Path(scratch) / "draft")


def opta_router(config: Path, model: str = "opta-tiny") -> Server:
    """This project, with a configuration that has ``model``."""
    return Server(
        name="opta-router",
        command=(sys.executable, "-m", "opta_router", "serve", "--config", str(config), "--port", "{port}"),
        model=model,
        ready_path="/readyz",
        interactive_headers={"x-opta-lane": "interactive"},
        background_headers={"x-opta-lane": "throughput"},
    )


def mlx_lm_server(weights: Weights, *, speculative: bool) -> Server:
    """mlx-lm's own server. With its draft model it answers one request after the other; without, it batches."""
    return Server(
        name="mlx_lm.server --draft-model" if speculative else "mlx_lm.server",
        command=(
            *(sys.executable, "-m", "mlx_lm.server", "--port", "{port}", "--log-level", "ERROR"),
            *("--model", str(weights.target)),
            *(("--draft-model", str(weights.draft)) if speculative else ()),
        ),
        model="default_model",
        ready_path="/v1/models",
    )


def vllm_mlx_server(weights: Weights) -> Server:
    """vllm-mlx's server: batches, and does not speculate."""
    command = shutil.which("vllm-mlx", path=str(Path(sys.executable).parent)) or "vllm-mlx"
    return Server(
        name="vllm-mlx serve --continuous-batching",
        command=(
            *(command, "serve", str(weights.target), "--served-model-name", "opta-tiny"),
            *("--continuous-batching", "--host", "127.0.0.1", "--port", "{port}"),
        ),
        model="opta-tiny",
        ready_path="/v1/models",
    )


def echo(answer: Path) -> Server:
    """Starlette on Hypercorn and nothing else; answers the bytes of a file."""
    return Server(
        name="echo",
        command=(sys.executable, "-m", "bench.echo", "{port}", str(answer)),
        model="",
        ready_path="/readyz",
    )


def litellm_proxy(config: Path, models: Sequence[str], api_base: str) -> Server:
    """LiteLLM's proxy with one worker, from an environment of its own that uv makes; writes its configuration."""
    model_list = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": api_base, "api_key": "none"}}
        for name in models
    ]
    settings = {"telemetry": False, "num_retries": 0}
    config.write_bytes(msgspec.json.encode({"model_list": model_list, "litellm_settings": settings}))  # YAML, too
    return Server(
        name="LiteLLM",
        command=(
            *("uv", "run", "--isolated", "--no-project", "--quiet", "--python", sys.executable),
            *("--with", f"litellm[proxy]=={LITELLM_VERSION}"),
            *("litellm", "--config", str(config), "--host", "127.0.0.1", "--port", "{port}"),
            *("--num_workers", "1", "--telemetry", "False"),
        ),
        model="",
        ready_path="/health/liveliness",
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch one at every start
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # open to this machine, as ours is here
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        },
    )


def peers(weights: Weights, *, speculative: bool) -> tuple[Server, ...]:
    """What else people run on MLX; ``speculative``: with the draft model, where it takes one."""
    return mlx_lm_server(weights, speculative=speculative), vllm_mlx_server(weights)


class Running(msgspec.Struct, frozen=True):
    """A server that answers: where, and the process that was started."""

    port: int
    pid: int
    client: httpx.AsyncClient


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of :func:`started`."""
    async with started(server) as process:
        yield process.client


@asynccontextmanager
async def started(server: Server) -> AsyncIterator[Running]:
    """Start ``server`` with the same BLAS as our host's, wait until it answers, stop it at the end.

    Raises:
        RuntimeError: it ended, did not answer in time, or failed a request; with the end of what it printed.
    """
    port = free_port()
    command = [part.format(port=port) for part in server.command]
    with tempfile.TemporaryFile() as output:
        process = await anyio.open_process(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=preload_environment({**os.environ, **server.environment}),
        )
        try:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None, limits=limits) as client:
                if not await _answers(client, server.ready_path, process):
                    raise RuntimeError(f"{server.name} did not start: {' '.join(command)}\n{_end(output)}")
                try:
                    yield Running(port, process.pid, client)
                except Exception as exc:
                    status = "is still there" if process.returncode is None else f"ended with {process.returncode}"
                    raise RuntimeError(f"{server.name} failed under measurement; it {status}\n{_end(output)}") from exc
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process)


def _end(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read()[-2000:].decode(errors="replace")


async def _stop(process: Process) -> None:
    try:
        process.terminate()
        with anyio.move_on_after(STOP_TIMEOUT_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
    except ProcessLookupError:
        pass
    await process.aclose()


async def _answers(client: httpx.AsyncClient, path: str, process: Process) -> bool:
    with anyio.move_on_after(START_TIMEOUT_S):
        while process.returncode is None:
            try:
                if (await client.get(path)).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            await anyio.sleep(0.2)
    return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
