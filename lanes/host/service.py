"""The host's wire thread: speaks to the router, tokenises prompts, turns tokens into text."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import SocketStream, TaskGroup

from lanes import heartbeat, wire
from lanes.engines.base import Emission, SequenceSpec
from lanes.errors import RequestRefused, WireError
from lanes.framed import FramedSocket
from lanes.host import device
from lanes.host.answer import Answer
from lanes.host.orphan import die_with_parent
from lanes.host.probe import versions
from lanes.host.prompt import PromptEncoder, is_short

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 1.0


class HostService:
    """One link's life, from Hello to the end of the stream."""

    def __init__(self, stream: SocketStream, token: str) -> None:
        self._token = token
        self._socket: FramedSocket[wire.ToHost] = FramedSocket(stream, wire.ToHost, self._handle)
        self._tasks: TaskGroup = anyio.create_task_group()
        self._device: device.DeviceThread | None = None
        self._models: dict[str, wire.ModelSpec] = {}
        self._encoders: dict[str, PromptEncoder] = {}
        self._load_ended: dict[str, asyncio.Event] = {}
        self._answers: dict[str, Answer] = {}
        self._encoding: set[str] = set()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Serve until the router says Shutdown or goes away."""
        try:
            async with self._tasks:
                self._socket.put(wire.Hello(os.getpid(), self._token, versions()))
                await self._socket.run()
                self._tasks.cancel_scope.cancel()
        finally:
            if self._device is not None:
                self._device.send(device.Stop())
                self._device.join(STOP_TIMEOUT_S)

    def _handle(self, message: wire.ToHost) -> None:
        match message:
            case wire.Configure():
                self._configure(message)
                self._tasks.start_soon(self._preload)
            case wire.Submit():
                self._submit(message)
            case wire.Cancel(request_id):
                self._cancel(request_id)
            case wire.Move(request_id, lane):
                self._require_device().send(device.Move(request_id, lane))
            case wire.SetLanes(lanes):
                self._require_device().send(device.SetLanes(lanes))
            case wire.Shutdown():
                self._socket.close()

    def _configure(self, message: wire.Configure) -> None:
        if message.protocol != wire.PROTOCOL_VERSION:
            raise WireError(f"the router speaks protocol {message.protocol}, this host {wire.PROTOCOL_VERSION}")
        self._models = {spec.name: spec for spec in message.models}
        self._load_ended = {spec.name: asyncio.Event() for spec in message.models}
        die_with_parent()  # only now: before, there are files to be removed
        self._device = device.DeviceThread(message.lanes, self._publish, heartbeat.inherited())
        self._device.start()

    async def _preload(self) -> None:
        preloaded = [spec for spec in self._models.values() if spec.preload]
        for spec in preloaded:
            self._require_device().send(device.Load(spec))
        for spec in preloaded:
            await self._load_ended[spec.name].wait()
        self._socket.put(wire.Ready())

    def _submit(self, submit: wire.Submit) -> None:
        encoder = self._encoders.get(submit.model)
        if encoder is None or not is_short(submit.prompt):
            self._encoding.add(submit.request_id)
            self._tasks.start_soon(self._submit_later, submit)
            return
        try:
            prompt = encoder.encode(submit.prompt)
        except RequestRefused as exc:
            self._refuse(submit, exc)
        else:
            self._start(submit, encoder, prompt)

    async def _submit_later(self, submit: wire.Submit) -> None:
        refusal: RequestRefused | None = None
        try:
            encoder = await self._encoder(submit.model)
            prompt = await to_thread.run_sync(encoder.encode, submit.prompt)
        except RequestRefused as exc:
            refusal = exc
        if submit.request_id not in self._encoding:
            return  # cancelled meanwhile, and answered
        self._encoding.discard(submit.request_id)
        if refusal is not None:
            self._refuse(submit, refusal)
        else:
            self._start(submit, encoder, prompt)

    def _refuse(self, submit: wire.Submit, refusal: RequestRefused) -> None:
        self._send([wire.Failed(submit.request_id, refusal.code, str(refusal))])

    def _start(self, submit: wire.Submit, encoder: PromptEncoder, prompt: tuple[int, ...]) -> None:
        try:
            self._answers[submit.request_id] = Answer(submit, len(prompt), encoder.tokenizer)
        except RequestRefused as exc:
            self._refuse(submit, exc)
            return
        self._send([wire.Started(submit.request_id, len(prompt))])
        sequence = SequenceSpec(
            submit.request_id,
            prompt,
            min(submit.max_tokens, encoder.context_tokens - len(prompt)),
            submit.sampling,
            submit.num_draft_tokens,
            submit.emitted.token_ids,
        )
        self._require_device().send(device.Add(submit.lane, self._models[submit.model], sequence))

    async def _encoder(self, model: str) -> PromptEncoder:
        spec = self._models.get(model)
        if spec is None:
            raise RequestRefused(wire.FailureCode.MODEL_UNAVAILABLE, f"no model {model!r} is configured")
        if model not in self._encoders:
            self._require_device().send(device.Load(spec))
            self._load_ended[model].clear()
            await self._load_ended[model].wait()
        encoder = self._encoders.get(model)
        if encoder is None:
            raise RequestRefused(wire.FailureCode.MODEL_UNAVAILABLE, f"model {model!r} could not be loaded")
        return encoder

    def _cancel(self, request_id: str) -> None:
        if request_id in self._encoding:
            self._encoding.discard(request_id)
            self._send([wire.Finished(request_id, "cancelled", 0, 0)])
        else:
            self._require_device().send(device.Cancel(request_id))

    def _publish(self, reports: list[device.Report]) -> None:
        """Called on the device thread."""
        self._loop.call_soon_threadsafe(self._report, reports)

    def _report(self, reports: list[device.Report]) -> None:
        """Handle what a device step brought; called on the event loop."""
        events: list[wire.Event] = []
        for report in reports:
            match report:
                case Emission(request_id):
                    events += self._emitted(request_id, report)
                case device.Moved(request_id, lane):
                    answer = self._answers.get(request_id)
                    if answer is not None:
                        events.append(answer.moved(lane))
                case device.Loaded(info, tokenizer):
                    self._loaded(info, tokenizer)
                case wire.ModelFailed(name):
                    self._load_ended[name].set()
                    self._socket.put(report)
                case _:
                    self._socket.put(report)
        if events:
            self._send(events)

    def _emitted(self, request_id: str, emission: Emission) -> list[wire.Event]:
        answer = self._answers.get(request_id)
        if answer is None:
            return []  # ended by a stop string while the device was a step ahead
        events = answer.take(emission)
        if answer.ended:
            del self._answers[request_id]
            if emission.finish is None and emission.error is None:
                self._require_device().send(device.Cancel(request_id))
        return events

    def _loaded(self, info: wire.ModelInfo, tokenizer: Any) -> None:
        self._encoders[info.name] = PromptEncoder(tokenizer, info.context_tokens)
        self._socket.put(wire.ModelLoaded(info))
        self._load_ended[info.name].set()

    def _send(self, events: list[wire.Event]) -> None:
        self._socket.put(wire.Events(tuple(events)))

    def _require_device(self) -> device.DeviceThread:
        if self._device is None:
            raise WireError("the first message must be Configure")
        return self._device
