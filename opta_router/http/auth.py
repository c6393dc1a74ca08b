"""Which configured client a request comes from, and who may administer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping

from opta_router.errors import AdminForbidden, InvalidKey
from policies.schema import ClientConfig, ServerConfig

KEY_HEADER = "x-api-key"


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key in ``Authorization: Bearer`` or, as Anthropic's clients send it, in ``x-api-key``."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get(KEY_HEADER, "").strip() or None


def authenticate(clients: Iterable[ClientConfig], headers: Mapping[str, str]) -> str | None:
    """The name of the client whose key this is; None where no client is configured and anybody may ask.

    Raises:
        InvalidKey: clients are configured, and the request has no key or none of theirs.
    """
    clients = tuple(clients)
    if not clients:
        return None
    key = presented_key(headers)
    if key is None:
        raise InvalidKey("a key is required: send Authorization: Bearer KEY")
    digest = _digest(key)
    # All of them, whichever matches: the time that it takes says nothing about which, or how nearly.
    matches = [client.name for client in clients if hmac.compare_digest(digest, client.key_sha256)]
    if not matches:
        raise InvalidKey("the key is not known here")
    return matches[0]


def authorize_admin(server: ServerConfig, headers: Mapping[str, str]) -> str:
    """How the request proves that it may administer, in words for the log.

    Without a configured key, whoever reaches a router that is bound to loopback may.

    Raises:
        AdminForbidden: no key is configured, and more than this machine reaches the router.
        InvalidKey: a key is configured, and the request does not have it.
    """
    if server.admin_key_sha256 is None:
        if not _is_loopback(server.host):
            raise AdminForbidden("set server.admin_key_sha256, or bind to loopback, to administer this router")
        return "whoever is on this machine"
    key = presented_key(headers)
    if key is None:
        raise InvalidKey("the admin key is required: send Authorization: Bearer KEY")
    if not hmac.compare_digest(_digest(key), server.admin_key_sha256):
        raise InvalidKey("this is not the admin key")
    return "the admin key"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
