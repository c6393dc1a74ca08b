"""The command line: ``opta-router serve | top | check | probe | explain | bench | key``.

Exit status: 0 ok, 2 bad usage or bad configuration, 1 anything else.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from opta_router.dialects.openai import decode_chat, decode_completion
from opta_router.errors import RouterError
from opta_router.version import VERSION
from policies import errors as policy_errors
from policies.auto import AutoFacts
from policies.classify import Classification, RequestFacts, classify
from policies.explain import explain, explain_auto
from policies.load import load_with_source
from policies.schema import Config, plain

if TYPE_CHECKING:
    from opta_router.configuration import Configuration
    from opta_router.log_writer import LogWriter

OK: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
KEY_BYTES: Final = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except policy_errors.PolicyError as exc:
        return _complain(str(exc), BAD_USAGE)
    except KeyboardInterrupt:
        return FAILED


def _complain(message: str, status: int) -> int:
    print(f"opta-router: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="opta-router", description="Two lanes on one device: a dual-lane LLM server.")
    parser.add_argument("--version", action="version", version=f"opta-router {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the router")
    _add_config(serve)
    serve.add_argument("--model", metavar="TARGET", help="serve this model instead of the configured ones")
    serve.add_argument("--draft", metavar="DRAFT", help="the draft for --model")
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", type=int, help="port to listen on; 0: a free one")
    serve.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    serve.add_argument(
        "--log-format", default="auto", choices=["auto", "json", "text"], help="auto: text on a terminal, else JSON"
    )
    serve.set_defaults(run=_serve)

    top = commands.add_parser("top", help="watch a running router")
    top.add_argument("--url", default="http://127.0.0.1:8400", help="the router's address (default: %(default)s)")
    top.add_argument(
        "--admin-key", metavar="KEY", help="where one is configured; better in the variable OPTA_ADMIN_KEY"
    )
    top.add_argument("--once", action="store_true", help="one look, as when the output is no terminal")
    top.set_defaults(run=_top)

    check = commands.add_parser("check", help="validate a configuration and print what is in effect")
    _add_config(check)
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)

    probe = commands.add_parser("probe", help="say what this machine and the installed engines can do")
    _add_config(probe)
    probe.add_argument("--json", action="store_true")
    probe.set_defaults(run=_probe)

    explained = commands.add_parser("explain", help="say which lane a request would take, and why")
    _add_config(explained)
    explained.add_argument("--request", required=True, metavar="FILE|-", help="the request's JSON body")
    explained.add_argument("-H", "--header", action="append", default=[], metavar="'Name: value'")
    explained.add_argument("--client", help="as this configured client")
    explained.add_argument("--json", action="store_true")
    explained.set_defaults(run=_explain)

    key = commands.add_parser("key", help="make a client's key, and the digest that goes into the configuration")
    key.set_defaults(run=_key)

    bench = commands.add_parser("bench", help="measure, side by side", add_help=False)
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    bench.set_defaults(run=_bench)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration; without it, the shipped one")


def _serve(arguments: argparse.Namespace) -> int:
    # Here, because the other commands need neither a server nor a host.
    from opta_router.configuration import Configuration, Origin  # noqa: PLC0415
    from opta_router.logs import start_log  # noqa: PLC0415

    writer = start_log(arguments.log_level.upper(), arguments.log_format, terminal=sys.stderr.isatty())
    try:
        return _routed(
            Configuration(
                Origin(
                    file=arguments.config,
                    target=arguments.model,
                    draft=arguments.draft,
                    host=arguments.host,
                    port=arguments.port,
                )
            ),
            writer,
        )
    finally:
        writer.close()


def _routed(configuration: Configuration, log: LogWriter) -> int:
    from opta_router.server import BindError  # noqa: PLC0415
    from opta_router.serving import run_router  # noqa: PLC0415

    def announce(url: str) -> None:
        names = ", ".join(model.name for model in configuration.in_force.models)
        print(f"opta-router {VERSION} answers at {url} ({names})", flush=True)

    try:
        anyio.run(run_router, configuration, announce, lambda: log.dropped)
    except ExceptionGroup as group:
        unbound, rest = group.split(BindError)
        if unbound is None or rest is not None:
            raise
        return _complain(str(unbound.exceptions[0]), FAILED)
    return OK


def _top(arguments: argparse.Namespace) -> int:
    from opta_router.top import TopError, run  # noqa: PLC0415

    try:
        run(arguments.url, arguments.admin_key, once=arguments.once)
    except TopError as exc:
        return _complain(str(exc), FAILED)
    except KeyboardInterrupt:
        return OK
    return OK


def _check(arguments: argparse.Namespace) -> int:
    loaded = load_with_source(arguments.config)
    if arguments.json:
        _print_json({"file": str(loaded.file), "config": plain(loaded.config)})
        return OK
    print(f"{loaded.file}: ok")
    for line in _summary(loaded.config):
        print(line)
    return OK


def _summary(config: Config) -> list[str]:
    lines = [f"listens on {config.server.host}:{config.server.port}"]
    for model in config.models:
        draft = f" with draft {model.draft}" if model.draft else ""
        known = f", known as {', '.join(model.aliases)}" if model.aliases else ""
        lines.append(f"model {model.name}: {model.target}{draft}{known}")
    for name, lane in (("interactive", config.lanes.interactive), ("throughput", config.lanes.throughput)):
        lines.append(
            f"lane {name}: weight {lane.weight:g}, {lane.max_active} at a time, {lane.max_queue} waiting "
            f"for at most {float(lane.queue_timeout):g} s"
        )
    lines += [f"preset {preset.name}: {preset.model}, lane {preset.lane or 'open'}" for preset in config.presets]
    lines += [f"client {client.name}: lane {client.lane or 'open'}" for client in config.clients]
    lines.append(f"routing: {', '.join(config.routing.order)}; default {config.routing.default}")
    return lines


def _probe(arguments: argparse.Namespace) -> int:
    from lanes.pairs import needs  # noqa: PLC0415
    from lanes.residency import written_bytes  # noqa: PLC0415
    from opta_router.probing import Probe, probe  # noqa: PLC0415

    config = load_with_source(arguments.config).config
    found: Probe = anyio.run(probe, config)
    if arguments.json:
        _print_json(msgspec.to_builtins(found))
    else:
        if found.versions is not None:
            versions = found.versions
            print(f"device {versions.device}, BLAS {versions.blas or 'none needed'}")
            print(f"mlx {versions.mlx}, mlx-lm {versions.mlx_lm}, vllm-mlx {versions.vllm_mlx}")
            limit = config.memory.limit.of(versions.memory_bytes)
            print(f"memory {written_bytes(versions.memory_bytes)}, of which models may take {written_bytes(limit)}")
        for model in found.models:
            print(f"model {model.name}: {model.problem or 'loads'}")
            if model.facts is not None:
                cache = "can" if model.facts.cache_trimmable else "cannot"
                print(f"  needs {needs(model.facts)}; its caches {cache} be trimmed")
            for lane in model.lanes:
                speculation = f"speculation {'on' if lane.speculates else 'off'}: {lane.speculation}"
                detail = f" ({lane.detail})" if lane.detail else ""
                obstacle = f", where {lane.obstacle}" if lane.obstacle else ""
                print(f"  {lane.lane}: {speculation}{detail}, by {lane.path}{obstacle}")
        if found.problem:
            print(found.problem, file=sys.stderr)
    return OK if found.status == "ok" else FAILED


def _explain(arguments: argparse.Namespace) -> int:
    config = load_with_source(arguments.config).config
    try:
        arguments.body = sys.stdin.read() if arguments.request == "-" else Path(arguments.request).read_text("utf-8")
        facts = _facts(config, arguments)
        verdict = classify(config, facts)
    except (RouterError, ValueError, OSError) as exc:
        return _complain(str(exc), BAD_USAGE)
    rules = explain(config, facts)
    if verdict.lane == "auto":
        rules.append(explain_auto(config, _auto_facts(arguments, verdict)))
    if arguments.json:
        _print_json(
            {
                "model": verdict.model,
                "lane": verdict.lane,
                "route": verdict.route,
                "hint": verdict.hint,
                "hint_ignored": verdict.hint_ignored,
                "preset": verdict.preset.name if verdict.preset is not None else None,
                "client": verdict.client.name if verdict.client is not None else None,
                "rules": msgspec.to_builtins(rules),
            }
        )
        return OK
    print(f"model {verdict.model}, lane {verdict.lane}, decided by {verdict.route}")
    for rule in rules:
        print(f"  {rule.rule}: {rule.outcome}: {rule.detail}")
    return OK


def _auto_facts(arguments: argparse.Namespace, verdict: Classification) -> AutoFacts:
    """Of a request that may be half a one: what cannot be decoded is taken to be short."""
    decode = decode_chat if "messages" in msgspec.json.decode(arguments.body) else decode_completion
    try:
        return decode(arguments.body.encode()).auto_facts(verdict.preset)
    except RouterError:
        return AutoFacts()


def _facts(config: Config, arguments: argparse.Namespace) -> RequestFacts:
    """The request as it would arrive. Raises ValueError for what is not one."""
    text = arguments.body
    try:
        body = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ValueError(f"--request: not valid JSON: {exc}") from exc
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str):
        raise ValueError("--request: a JSON object with a string `model` is needed")  # noqa: TRY004 - of the text
    headers: dict[str, str] = {}
    for header in arguments.header:
        name, colon, value = header.partition(":")
        if not colon:
            raise ValueError(f"-H {header!r}: 'Name: value' is needed")
        headers[name.strip().lower()] = value.strip()
    if arguments.client is not None and arguments.client not in {client.name for client in config.clients}:
        raise ValueError(f"--client: {arguments.client!r} is not configured")
    fields = {name: value for name, value in body.items() if isinstance(value, str)}
    return RequestFacts(model, headers, fields, arguments.client)


def _key(_arguments: argparse.Namespace) -> int:
    key = f"opta-{secrets.token_urlsafe(KEY_BYTES)}"
    print(f"key:        {key}")
    print(f"key_sha256: {hashlib.sha256(key.encode()).hexdigest()}")
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    from bench.cli import main as bench_main  # noqa: PLC0415

    return bench_main(arguments.arguments)


def _print_json(data: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
