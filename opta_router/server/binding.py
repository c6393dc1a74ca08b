"""The listening socket: bound before anything slow starts, so that a taken port is told at once."""

from __future__ import annotations

import errno
import socket


class BindError(Exception):
    """The address cannot be listened on; the message is for the operator."""

    code = "bind_failed"


def bind_socket(host: str, port: int, *, send_buffer_bytes: int) -> socket.socket:
    """A TCP socket bound to `host` (a name or an address) and `port` (0: any free one), not listening yet.

    Accepted connections inherit `send_buffer_bytes`.

    Raises:
        BindError: the name does not resolve, or the address is taken, foreign, forbidden or no address.
    """
    if not 0 <= port <= 65_535:  # getaddrinfo takes a larger one modulo 65,536
        raise BindError(f"cannot listen on {host}:{port}: ports go from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise BindError(f"cannot listen on {host}:{port}: the name does not resolve ({error})") from error
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise bind_error(host, port, error) from error
    sock.setblocking(False)
    return sock


def bind_error(host: str, port: int, error: OSError) -> BindError:
    """What the operator should read about an error of bind or listen."""
    return BindError(f"cannot listen on {host}:{port}: {_explain(error)}")


def url_of(sock: socket.socket) -> str:
    """The address that the socket is really bound to, as `http://host:port`."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


def _explain(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the address is already in use; is another server running there?"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address"
        case errno.EACCES:
            return "permission denied; ports below 1024 are usually reserved"
        case _:
            return error.strerror or str(error)
