"""Who may be spoken to by which name, and from which page: the guard against DNS rebinding and foreign sites."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from opta_router.server.refusal import (
    ASGIApp,
    Receive,
    RenderError,
    Scope,
    Send,
    header_values,
    refuse,
    render_plain_error,
)

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ALL_INTERFACES = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


class HostGuard:
    """ASGI middleware that checks Host (421 `host_not_allowed`) and Origin (403 `origin_not_allowed`).

    A rebinding attack reaches us under a *name* of the attacker's. Allowed are the loopback names, the bound host and
    `allowed_hosts`, each with any port; bound to all interfaces (`0.0.0.0`, `::`), also this machine's name and any
    address literal, which cannot be rebound. A browser's Origin is allowed if it is the same host and port as Host
    says, or listed; `null` is not.

    Args:
        app: The application.
        bound_host: What the server listens on, a name or an address.
        allowed_hosts: Further names, without port.
        allowed_origins: Full origins of foreign pages, such as `https://chat.example`.
        render_error: The shape of the refusal's body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        bound_host: str,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        render_error: RenderError = render_plain_error,
    ) -> None:
        self._app = app
        self._hosts = _LOOPBACK | {_host_of(host) for host in allowed_hosts}
        self._any_address = bound_host in _ALL_INTERFACES
        if self._any_address:
            name = socket.gethostname().lower()
            self._hosts |= {name, f"{name}.local"}
        else:
            self._hosts |= {_host_of(bound_host)}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)
        self._render_error = render_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, if Host and Origin may."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        hosts, origins = header_values(scope, b"host"), header_values(scope, b"origin")
        if len(hosts) != 1 or not self._is_ours(_host_of(hosts[0])):
            error = (421, "host_not_allowed", "this server does not go by that name")
        elif not all(self._is_allowed(origin.lower(), hosts[0].lower()) for origin in origins):
            error = (403, "origin_not_allowed", "pages of that origin may not call")
        else:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()  # websocket.connect
        await refuse(scope, send, error[0], self._render_error(*error), close=True)

    def _is_ours(self, host: str) -> bool:
        return host in self._hosts or (self._any_address and _is_address(host))

    def _is_allowed(self, origin: str, host: str) -> bool:
        scheme, separator, netloc = origin.partition("://")
        same = bool(separator) and scheme in ("http", "https") and netloc == host
        return same or origin in self._origins


def _host_of(netloc: str) -> str:
    """`Name:1234` to `name`, `[::1]:1234` to `::1`; an address without brackets stays as it is."""
    netloc = netloc.lower()
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0].rstrip(".") if netloc.count(":") <= 1 else netloc


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
