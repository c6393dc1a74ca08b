"""The host's wire thread: speaks to the router, tokenises prompts, turns tokens into text."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import ByteStream

from lanes import wire
from lanes.engines.base import Emission, SequenceSpec
from lanes.errors import RequestRefused, WireError
from lanes.host import device
from lanes.host.answer import Answer
from lanes.host.probe import versions
from lanes.host.prompt import PromptEncoder
from lanes.outbox import Outbox

log = logging.getLogger(__name__)

RECEIVE_BYTES = 256 * 1024
STOP_TIMEOUT_S = 1.0


class HostService:
    """One link's life, from Hello to the end of the stream."""

    def __init__(self, stream: ByteStream, token: str) -> None:
        self._stream = stream
        self._token = token
        self._outbox = Outbox(stream)
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
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._outbox.run)
                self._outbox.put(wire.Hello(os.getpid(), self._token, versions()))
                await self._read(tg)
                tg.cancel_scope.cancel()
        finally:
            if self._device is not None:
                self._device.send(device.Stop())
                self._device.join(STOP_TIMEOUT_S)

    async def _read(self, tg: anyio.abc.TaskGroup) -> None:
        reader: wire.FrameReader[wire.ToHost] = wire.FrameReader(wire.ToHost)
        while True:
            try:
                data = await self._stream.receive(RECEIVE_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            for message in reader.feed(data):
                if isinstance(message, wire.Shutdown):
                    return
                self._handle(message, tg)

    def _handle(self, message: wire.ToHost, tg: anyio.abc.TaskGroup) -> None:
        match message:
            case wire.Configure():
                self._configure(message)
                tg.start_soon(self._preload)
            case wire.Submit():
                self._encoding.add(message.request_id)
                tg.start_soon(self._submit, message)
            case wire.Cancel(request_id):
                self._cancel(request_id)
            case wire.Move(request_id, lane):
                self._require_device().send(device.Move(request_id, lane))
            case wire.SetLanes(lanes):
                self._require_device().send(device.SetLanes(lanes))

    def _configure(self, message: wire.Configure) -> None:
        if message.protocol != wire.PROTOCOL_VERSION:
            raise WireError(f"the router speaks protocol {message.protocol}, this host {wire.PROTOCOL_VERSION}")
        self._models = {spec.name: spec for spec in message.models}
        self._load_ended = {spec.name: asyncio.Event() for spec in message.models}
        self._device = device.DeviceThread(message.lanes, self._publish)
        self._device.start()

    async def _preload(self) -> None:
        preloaded = [spec for spec in self._models.values() if spec.preload]
        for spec in preloaded:
            self._require_device().send(device.Load(spec))
        for spec in preloaded:
            await self._load_ended[spec.name].wait()
        self._outbox.put(wire.Ready())

    async def _submit(self, submit: wire.Submit) -> None:
        request_id = submit.request_id
        try:
            encoder = await self._encoder(submit.model)
            prompt = await to_thread.run_sync(encoder.encode, submit.prompt)
        except RequestRefused as exc:
            if request_id in self._encoding:
                self._encoding.discard(request_id)
                self._send([wire.Failed(request_id, exc.code, str(exc))])
            return
        if request_id not in self._encoding:
            return  # cancelled meanwhile, and answered
        self._encoding.discard(request_id)
        self._answers[request_id] = Answer(submit, len(prompt), encoder.tokenizer)
        self._send([wire.Started(request_id, len(prompt))])
        sequence = SequenceSpec(
            request_id,
            prompt,
            min(submit.max_tokens, encoder.context_tokens - len(prompt)),
            submit.sampling,
            submit.num_draft_tokens,
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
                    self._outbox.put(report)
                case _:
                    self._outbox.put(report)
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
        self._outbox.put(wire.ModelLoaded(info))
        self._load_ended[info.name].set()

    def _send(self, events: list[wire.Event]) -> None:
        self._outbox.put(wire.Events(tuple(events)))

    def _require_device(self) -> device.DeviceThread:
        if self._device is None:
            raise WireError("the first message must be Configure")
        return self._device
