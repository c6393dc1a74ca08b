"""Whose traces and metrics these are, and how long a collector may keep us."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from opentelemetry.sdk.resources import Resource

from opta_router.telemetry import names
from policies.schema import TelemetryConfig

EXPORT_TIMEOUT_S: Final = 2.0
SHUTDOWN_S: Final = 2.5


def resource_of(config: TelemetryConfig) -> Resource:
    """The service by its configured name and version, with what ``OTEL_RESOURCE_ATTRIBUTES`` says."""
    return Resource.create({names.SERVICE_NAME: config.service_name, names.SERVICE_VERSION: version("opta-router")})
