"""Request bodies: how large, how slow, how many at a time."""

from __future__ import annotations

import asyncio

from opta_router.server.refusal import (
    ASGIApp,
    Message,
    Receive,
    RenderError,
    Scope,
    Send,
    header_values,
    refuse,
    render_plain_error,
)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class _ClientLeftError(Exception):
    """The client closed before its body was complete; there is nobody to answer."""


class BodyLimit:
    """ASGI middleware that reads each request's body, within limits, before the application is called.

    The application then receives the body as one message, and after it what the server says (a disconnect).

    | refused with | code                         | when                                                   |
    |--------------|------------------------------|--------------------------------------------------------|
    | 413          | `body_too_large`             | declared: before reading; chunked: once it is exceeded |
    | 408          | `body_timeout`               | not complete after `read_timeout_s`                    |
    | 415          | `unsupported_content_coding` | any Content-Encoding but identity                      |
    | 503          | `bodies_exceed_memory`       | all bodies held at the moment exceed `max_held_bytes`  |

    Args:
        app: The application.
        max_body_bytes: Of one request.
        max_held_bytes: Of all requests whose body is being read or whose application has not yet taken it.
        read_timeout_s: From the end of the headers to the end of the body.
        render_error: The shape of the refusal's body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int = 8 * 2**20,
        max_held_bytes: int = 256 * 2**20,
        read_timeout_s: float = 30.0,
        render_error: RenderError = render_plain_error,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_held_bytes = max_held_bytes
        self._read_timeout_s = read_timeout_s
        self._render_error = render_error
        self._held_bytes = 0

    def stats(self) -> dict[str, int]:
        """Bytes of request bodies held now, and how many may be."""
        return {"held_bytes": self._held_bytes, "max_held_bytes": self._max_held_bytes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then call the application; or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        chunks: list[bytes] = []
        try:
            self._check_headers(scope)
            try:
                async with asyncio.timeout(self._read_timeout_s):
                    await self._read(receive, chunks)
            except TimeoutError:
                raise _RefusedError(408, "body_timeout", f"no complete body in {self._read_timeout_s:g} s") from None
        except _ClientLeftError:
            self._release(chunks)
        except _RefusedError as refused:
            self._release(chunks)
            body = self._render_error(refused.status, refused.code, refused.message)
            await refuse(scope, send, refused.status, body, refused.headers, close=True)
        else:
            try:
                await self._app(scope, self._replay(chunks, receive), send)
            finally:
                self._release(chunks)

    def _check_headers(self, scope: Scope) -> None:
        codings = ",".join(header_values(scope, b"content-encoding")).lower().split(",")
        if any(coding.strip() not in ("", "identity") for coding in codings):
            message = "request bodies must not be compressed"
            raise _RefusedError(415, "unsupported_content_coding", message, (b"accept-encoding", b"identity"))
        for declared in header_values(scope, b"content-length"):
            # Hypercorn's parsers accept digits only, and no two lengths that differ.
            if not declared.isdecimal() or int(declared[:20]) > self._max_body_bytes:
                raise self._too_large()

    async def _read(self, receive: Receive, chunks: list[bytes]) -> None:
        read_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _ClientLeftError
            if chunk := message.get("body", b""):
                read_bytes += len(chunk)
                chunks.append(chunk)
                self._held_bytes += len(chunk)
                if read_bytes > self._max_body_bytes:
                    raise self._too_large()
                if self._held_bytes > self._max_held_bytes:
                    message_ = "too many request bodies are in flight"
                    raise _RefusedError(503, "bodies_exceed_memory", message_, (b"retry-after", b"1"))
            more = message.get("more_body", False)

    def _replay(self, chunks: list[bytes], receive: Receive) -> Receive:
        replayed = False

        async def receive_again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            body = b"".join(chunks)
            self._release(chunks)
            return {"type": "http.request", "body": body, "more_body": False}

        return receive_again

    def _release(self, chunks: list[bytes]) -> None:
        self._held_bytes -= sum(map(len, chunks))
        chunks.clear()

    def _too_large(self) -> _RefusedError:
        message = f"the request body is larger than {self._max_body_bytes} bytes"
        return _RefusedError(413, "body_too_large", message)
