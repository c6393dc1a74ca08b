"""The endpoints that generate: decode, classify, dispatch, and send what comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import anyio

from opta_router import logs
from opta_router.answer import Answer, Arrival
from opta_router.dialects import openai
from opta_router.dialects.framing import CONTENT_TYPE, KEEP_ALIVE
from opta_router.errors import Fault, MethodNotAllowed, ModelNotFound, PresetNotFound, RouterError
from opta_router.http.auth import authenticate
from opta_router.http.exchange import Exchange, Header
from opta_router.identifiers import new_identifier
from opta_router.request import Ending, GenerationRequest, Operation
from opta_router.server.refusal import Receive, Scope, Send
from opta_router.service import Service, service_of
from opta_router.telemetry import HttpRequest, RequestTrace
from opta_router.version import VERSION
from policies.classify import PRESET_HEADER, Classification, RequestFacts, classify
from policies.errors import UnknownModel, UnknownPreset

log = logging.getLogger(__name__)

FIRST_KEEP_ALIVE_S: Final = 1.0
KEEP_ALIVE_S: Final = 5.0
"""A stream that has nothing to say sends a comment after the first of these, and then this often: clients and proxies
close connections that are silent for long, and a prompt, a queue or the engine's restart may take longer."""

SUB_CLIENT_HEADERS: Final = ("x-client-id", "x-openclaw-agent-id")
MAX_SUB_CLIENT_CHARS: Final = 128
FINGERPRINT: Final = f"opta-router-{VERSION}"
_PREFIX: Final[dict[Operation, str]] = {"chat": "chatcmpl", "text_completion": "cmpl"}

Decode = Callable[[bytes, frozenset[str]], GenerationRequest]


class InferenceEndpoint:
    """One path that generates, as an ASGI application."""

    def __init__(self, path: str, decode: Decode) -> None:
        self._path = path
        self._decode = decode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and tell its trace how it ended."""
        service = service_of(scope)
        exchange = Exchange(scope, receive, send)
        if scope["method"] != "POST":
            error = MethodNotAllowed(f"{self._path} takes POST", allowed="POST")
            await _send_error(exchange, error)
            return
        trace = service.journal.watched(
            service.telemetry.request(
                HttpRequest(
                    "POST",
                    self._path,
                    exchange.headers,
                    scope["scheme"],
                    (scope.get("client") or (None,))[0],
                    scope["http_version"],
                )
            )
        )
        traceparent = exchange.headers.get("traceparent")
        logs.subject.set(logs.Subject(exchange.request_id, trace.identity, traceparent))
        try:
            await _Inference(service, exchange, trace).run(self._decode)
        finally:
            trace.responded(exchange.status)


class _Inference:
    """One request's way through the router."""

    def __init__(self, service: Service, exchange: Exchange, trace: RequestTrace) -> None:
        self._service = service
        self._config = service.config  # this request's, whatever is reloaded while it runs
        self._exchange = exchange
        self._trace = trace
        self._arrived_s = service.dispatcher.now_s()
        self._timeout_s: float | None = None
        self._stream: openai.StreamEncoder | None = None

    async def run(self, decode: Decode) -> None:
        """Answer, unless the client leaves first."""
        try:
            request, verdict = await self._understood(decode)
        except RouterError as error:
            await self._failed(error)
            return
        with anyio.CancelScope() as scope:

            def left() -> None:
                self._trace.cancelled()
                scope.cancel()

            self._exchange.on_disconnect(left)
            await self._answer(request, verdict)

    async def _understood(self, decode: Decode) -> tuple[GenerationRequest, Classification]:
        """What is asked, by whom, and where it goes.

        Raises:
            RouterError: it cannot be asked.
        """
        exchange, config = self._exchange, self._config
        exchange.check_request_id()
        self._timeout_s = exchange.timeout_s()
        client = authenticate(config.clients, exchange.headers)
        body = await exchange.json_body()
        request = decode(body, frozenset(hint.body for hint in config.hints if hint.body is not None))
        facts = RequestFacts(request.model, exchange.headers, request.hints, client)
        try:
            verdict = classify(config, facts)
        except UnknownModel as exc:
            raise ModelNotFound(str(exc), param="model") from exc
        except UnknownPreset as exc:
            raise PresetNotFound(str(exc), param=PRESET_HEADER) from exc
        verdict = self._service.dispatcher.placed(request, verdict)
        draft = next(model.draft for model in config.models if model.name == verdict.model)
        self._trace.classified(
            request, verdict, request_id=exchange.request_id, sub_client=self._sub_client(), draft_model=draft
        )
        return request, verdict

    async def _answer(self, request: GenerationRequest, verdict: Classification) -> None:
        arrival = Arrival(
            request=request,
            config=self._config,
            verdict=verdict,
            sub_client=self._sub_client(),
            trace=self._trace,
            arrived_s=self._arrived_s,
            timeout_s=self._timeout_s,
        )
        facts = openai.AnswerFacts(
            operation=request.operation,
            id=f"{_PREFIX[request.operation]}-{new_identifier()}",
            created=int(time.time()),
            model=verdict.model,
            system_fingerprint=FINGERPRINT,
            service_tier=request.service_tier,
            include_usage=request.include_usage,
        )
        try:
            async with self._service.dispatcher.answer(arrival) as answer:
                await answer.started()
                if request.stream:
                    await self._streamed(facts, answer)
                else:
                    await self._whole(facts, answer)
        except RouterError as error:
            await self._failed(error)
        except Exception:
            log.exception("request %s", self._exchange.request_id)
            await self._failed(Fault("an internal error; the router's log says more under this request's id"))

    async def _whole(self, facts: openai.AnswerFacts, answer: Answer) -> None:
        pieces: list[str] = []
        while (text := await answer.text()) is not None:
            pieces.append(text)
        whole = "".join(pieces)
        ending = self._finished(answer, whole)
        await self._exchange.respond(200, openai.encode(facts, whole, ending), _routing(answer))

    async def _streamed(self, facts: openai.AnswerFacts, answer: Answer) -> None:
        stream = openai.StreamEncoder(facts)
        headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), *_routing(answer)]
        await self._exchange.start(200, CONTENT_TYPE, headers)
        self._stream = stream
        data = stream.start()
        recorded: list[str] | None = [] if self._trace.records_content else None
        patience_s = FIRST_KEEP_ALIVE_S
        while True:
            text: str | None = ""
            with anyio.move_on_after(patience_s) as silence:
                text = await answer.text()
            patience_s = KEEP_ALIVE_S if silence.cancelled_caught else FIRST_KEEP_ALIVE_S
            if silence.cancelled_caught:
                data += KEEP_ALIVE
            if text is None:
                break
            data += stream.delta(text, answer.drafted) if text else b""
            if recorded is not None:
                recorded.append(text)
            if data and answer.ending is None:  # the last words go together with the end
                await self._exchange.write(data, more=True)
                data = b""
        ending = self._finished(answer, "".join(recorded or ()))
        await self._exchange.write(data + stream.finish(ending), more=False)

    def _finished(self, answer: Answer, text: str) -> Ending:
        """Tell the trace before the last write: whoever leaves during that has not cancelled anything."""
        if answer.ending is None:
            raise RuntimeError("the answer has not ended")
        self._trace.finished(answer.ending, text)
        return answer.ending

    async def _failed(self, error: RouterError) -> None:
        """Say so: with a status if none was sent, else in the stream."""
        self._trace.failed(error.code)
        if self._exchange.status is None:
            await _send_error(self._exchange, error)
        else:
            await self._exchange.write(self._stream.error(error) if self._stream is not None else b"", more=False)

    def _sub_client(self) -> str:
        headers: dict[str, str] = self._exchange.headers
        return next((headers[name] for name in SUB_CLIENT_HEADERS if name in headers), "")[:MAX_SUB_CLIENT_CHARS]


def _routing(answer: Answer) -> list[Header]:
    return [(b"x-opta-lane", answer.lane.encode("ascii")), (b"x-opta-route", answer.route.encode("ascii"))]


async def _send_error(exchange: Exchange, error: RouterError) -> None:
    rendered = openai.render_error(error)
    await exchange.respond(rendered.status, rendered.body, rendered.headers)


def chat_completions() -> InferenceEndpoint:
    """``POST /v1/chat/completions``."""
    return InferenceEndpoint("/v1/chat/completions", openai.decode_chat)


def completions() -> InferenceEndpoint:
    """``POST /v1/completions``."""
    return InferenceEndpoint("/v1/completions", openai.decode_completion)
