"""The host's wire thread: speaks to the router, tokenises prompts, turns tokens into text."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial

import anyio
from anyio import to_thread
from anyio.abc import SocketStream, TaskGroup

from lanes import heartbeat, wire
from lanes.engines.base import Emission, SequenceSpec
from lanes.errors import ModelLoadFailed, RequestRefused, WireError
from lanes.framed import FramedSocket
from lanes.host import device, loader
from lanes.host.answer import Answer
from lanes.host.orphan import die_with_parent
from lanes.host.probe import versions
from lanes.host.prompt import PromptEncoder, is_short
from lanes.host.residents import Examination, examine, import_engines

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
        self._examined: dict[str, Examination] = {}
        self._answers: dict[str, Answer] = {}
        self._encoding: set[str] = set()
        self._progress_due_s = 0.0
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
            case wire.StandBy(engines):
                die_with_parent()
                if engines:
                    self._tasks.start_soon(partial(to_thread.run_sync, import_engines, abandon_on_cancel=True))
            case wire.Configure():
                self._configure(message)
                self._socket.put(wire.Ready())
            case wire.Submit():
                self._submit(message)
            case wire.Cancel(request_id):
                self._cancel(request_id)
            case wire.Move(request_id, lane):
                self._require_device().send(device.Move(request_id, lane))
            case wire.Prepare(name):
                self._tasks.start_soon(self._prepare, name)
            case wire.Load(name):
                self._require_device().send(loader.Load(self._examined[name]))
            case wire.Unload(name):
                self._encoders.pop(name, None)
                self._require_device().send(loader.Unload(name))
            case wire.LimitPromptCaches(max_bytes):
                self._require_device().send(loader.LimitPromptCaches(max_bytes))
            case wire.SetLanes(lanes):
                self._require_device().send(device.SetLanes(lanes))
            case wire.Shutdown():
                self._socket.close()

    def _configure(self, message: wire.Configure) -> None:
        if message.protocol != wire.PROTOCOL_VERSION:
            raise WireError(f"the router speaks protocol {message.protocol}, this host {wire.PROTOCOL_VERSION}")
        self._models = {spec.name: spec for spec in message.models}
        die_with_parent()  # only now: before, there are files to be removed
        self._device = device.DeviceThread(message.lanes, self._publish, heartbeat.inherited())
        self._device.start()

    async def _prepare(self, name: str) -> None:
        """Have a worker thread look at the files, then the device thread at what they make."""

        def said(done_bytes: int, total_bytes: int) -> None:
            progress = wire.ModelProgress(name, "fetching", done_bytes, total_bytes)
            self._loop.call_soon_threadsafe(self._put_progress, progress)

        self._socket.put(wire.ModelProgress(name, "examining"))
        try:
            examined = await to_thread.run_sync(examine, self._models[name], said, abandon_on_cancel=True)
        except ModelLoadFailed as exc:
            self._socket.put(wire.ModelFailed(name, str(exc)))
        except Exception as exc:  # whoever waits for this pair must hear of it, whatever went wrong
            log.exception("model %s could not be looked at", name)
            self._socket.put(wire.ModelFailed(name, f"{type(exc).__name__}: {exc}"))
        else:
            self._examined[name] = examined
            self._require_device().send(loader.Prepare(examined))

    def _put_progress(self, progress: wire.ModelProgress) -> None:
        """At most every so often, and the last one."""
        now_s = self._loop.time()
        if now_s >= self._progress_due_s or progress.done_bytes == progress.total_bytes:
            self._progress_due_s = now_s + loader.PROGRESS_S
            self._socket.put(progress)

    def _submit(self, submit: wire.Submit) -> None:
        encoder = self._encoders.get(submit.model)
        if encoder is None:
            problem = f"model {submit.model!r} is not resident"
            self._refuse(submit, RequestRefused(wire.FailureCode.MODEL_UNAVAILABLE, problem))
            return
        if not is_short(submit.prompt):
            self._encoding.add(submit.request_id)
            self._tasks.start_soon(self._submit_later, submit, encoder)
            return
        try:
            prompt = encoder.encode(submit.prompt)
        except RequestRefused as exc:
            self._refuse(submit, exc)
        else:
            self._start(submit, encoder, prompt)

    async def _submit_later(self, submit: wire.Submit, encoder: PromptEncoder) -> None:
        refusal: RequestRefused | None = None
        try:
            prompt = await to_thread.run_sync(encoder.encode, submit.prompt)
        except RequestRefused as exc:
            refusal = exc
        except RuntimeError as exc:  # no thread can be started; the other requests need none
            log.exception("the prompt of request %s could not be encoded", submit.request_id)
            refusal = RequestRefused(wire.FailureCode.ENGINE_ERROR, str(exc))
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
        self._require_device().send(device.Add(submit.lane, submit.model, sequence))

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
                case loader.Loaded(info, tokenizer):
                    self._encoders[info.name] = PromptEncoder(tokenizer, info.context_tokens)
                    self._socket.put(wire.ModelLoaded(info))
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

    def _send(self, events: list[wire.Event]) -> None:
        self._socket.put(wire.Events(tuple(events)))

    def _require_device(self) -> device.DeviceThread:
        if self._device is None:
            raise WireError("the first message must be Configure")
        return self._device
