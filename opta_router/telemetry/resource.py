"""Whose traces and metrics these are, and how long a collector may keep us."""

from __future__ import annotations

import socket
from typing import Final

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from opta_router.telemetry import names
from opta_router.version import VERSION
from policies.schema import TelemetryConfig

EXPORT_TIMEOUT_S: Final = 2.0
SHUTDOWN_S: Final = 2.5
EXPORT_INTERVAL_S: Final = 15.0
"""How often metrics are sent, unless ``OTEL_METRIC_EXPORT_INTERVAL`` says it. The SDK's own minute is longer than the
windows that dashboards look through."""


def resource_of(config: TelemetryConfig) -> Resource:
    """The service by its configured name, its version and its machine, with what ``OTEL_RESOURCE_ATTRIBUTES`` says.

    The SDK's own instance would be another one after each restart, and what is pushed has no end: for five minutes the
    queues of the old one would be added to the new one's. Two routers on one machine need that variable.
    """
    named = {names.SERVICE_NAME: config.service_name, names.SERVICE_VERSION: VERSION}
    stated = OTELResourceDetector().detect().attributes.get(names.SERVICE_INSTANCE_ID)
    instance = Resource({names.SERVICE_INSTANCE_ID: stated or socket.gethostname()})
    return Resource.create(named).merge(instance)
