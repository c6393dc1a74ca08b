"""Which configured client a request comes from."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from opta_router.errors import InvalidKey
from policies.schema import ClientConfig

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
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    # All of them, whichever matches: the time that it takes says nothing about which, or how nearly.
    matches = [client.name for client in clients if hmac.compare_digest(digest, client.key_sha256)]
    if not matches:
        raise InvalidKey("the key is not known here")
    return matches[0]
