"""What every endpoint works with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from opta_router.dispatch import Dispatcher, Engine
from opta_router.telemetry import Tracing
from policies.schema import Config

VERSION = importlib.metadata.version("opta-router")


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One running router. ``started_s`` is in seconds of the Unix epoch."""

    config: Config
    engine: Engine
    dispatcher: Dispatcher
    tracing: Tracing
    started_s: int


def service_of(scope: Mapping[str, Any]) -> Service:
    """The service behind an ASGI scope."""
    return cast(Service, scope["app"].state.service)
