"""What every endpoint works with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from opta_router.configuration import Configuration
from opta_router.dispatch import Dispatcher, Engine
from opta_router.telemetry import Tracing
from policies.schema import Config

VERSION = importlib.metadata.version("opta-router")


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One running router. ``started_s`` is in seconds of the Unix epoch."""

    configuration: Configuration
    engine: Engine
    dispatcher: Dispatcher
    tracing: Tracing
    started_s: int

    @property
    def config(self) -> Config:
        """The configuration in force. A request reads it once: from then on it may change."""
        return self.configuration.in_force


def service_of(scope: Mapping[str, Any]) -> Service:
    """The service behind an ASGI scope."""
    return cast(Service, scope["app"].state.service)
