"""What the dispatcher tells about a request, and the tracing that records nothing.

With tracing off, these classes are what runs: no span is made, no thread started, and a call is an empty method.
:mod:`opta_router.telemetry.told` and :mod:`opta_router.telemetry.export` are the recording twins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lanes.wire import Lane
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry.histograms import Identity
from policies.classify import Classification


class HttpRequest(NamedTuple):
    """What is known of a request when it comes in.

    Args:
        method: The HTTP method.
        route: The route's template. An inference route has no parameters, so it is the path, too.
        headers: Names in lower case. ``traceparent`` and ``user-agent`` are read, nothing else.
        scheme: ``http`` or ``https``.
        client_address: The peer's IP address.
        http_version: As ASGI has it: ``1.1``, ``2``.
    """

    method: str
    route: str
    headers: Mapping[str, str]
    scheme: str = "http"
    client_address: str | None = None
    http_version: str = "1.1"


class RequestTrace:
    """One request, told as it happens: each method is called where the thing happens, and takes the time itself.

    The usual order is the order below. A request may end early anywhere: whatever is open then ends too, whatever is
    told after its end is passed over, and :meth:`responded` is always the last word. Not thread-safe: an event loop's.
    """

    __slots__ = ()

    @property
    def records_content(self) -> bool:
        """Whether prompt and answer are recorded: then :meth:`finished` wants the answer's text."""
        return False

    @property
    def identity(self) -> Identity | None:
        """Trace and span that it is recorded as; None if it is not."""
        return None

    def classified(
        self,
        request: GenerationRequest,
        verdict: Classification,
        *,
        request_id: str,
        sub_client: str = "",
        draft_model: str | None = None,
    ) -> None:
        """What is asked for, of which model, and the lane that the rules chose. Once.

        Neither the prompt nor anything else of ``request`` but its numbers, names and stop strings is recorded.
        """

    def queued(self) -> None:
        """The wait for a slot begins."""

    def admitted(self, lane: Lane, route: str) -> None:
        """The wait is over: the lane that took the request, and the rule that decided in the end."""

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """The request went to a host. ``read_usage`` says, on any thread, what it has used so far."""

    def first_token(self) -> None:
        """The first token came back."""

    def demoted(self, lane: Lane, emitted_tokens: int) -> None:
        """The answer goes on in ``lane``, after ``emitted_tokens`` tokens."""

    def interrupted(self) -> None:
        """The host died. A resumption or an ending follows."""

    def resumed(self, emitted_tokens: int) -> None:
        """The request went to another host, which continues after ``emitted_tokens`` tokens."""

    def settled(self, usage: Usage) -> None:
        """The host has said its last word on it, before or after its end here: what it used in all."""

    def finished(self, ending: Ending, text: str = "") -> None:
        """The answer is complete, or was cancelled and the host has acknowledged it. ``text``: the answer, for a trace
        that :attr:`records_content`.
        """

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """It ended badly: an error's stable ``code``, never its message. ``report``: what is known all the same."""

    def cancelled(self, report: OptaReport | None = None) -> None:
        """The client left. Not an error."""

    def responded(self, status: int | None) -> None:
        """The HTTP exchange is over, with this status; None if none was sent."""


class Tracing:
    """Where traces go. This one: nowhere."""

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return False

    @property
    def dropped_traces(self) -> int:
        """Traces that were to be sent and will never arrive, or not whole, since the start."""
        return 0

    def request(self, http: HttpRequest) -> RequestTrace:
        """A new request's trace. It must come to :meth:`RequestTrace.responded`."""
        return NO_TRACE

    def shutdown(self) -> bool:
        """Send what is left. Blocks for :data:`~opta_router.telemetry.resource.SHUTDOWN_S` at most, so keep it off the
        event loop. False if something was left then. Safe to call again.
        """
        return True


NO_TRACE = RequestTrace()
