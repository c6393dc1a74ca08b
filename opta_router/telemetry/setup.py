"""Whether and where traces are sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from opta_router.telemetry.tracing import Tracing
from policies.errors import ConfigError
from policies.schema import TelemetryConfig

TRACES_PATH: Final = "/v1/traces"

_logger = logging.getLogger(__name__)


def start_tracing(config: TelemetryConfig, environ: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing as configured. Without an endpoint it costs nothing: no thread, and no import of OpenTelemetry."""
    endpoint = traces_endpoint(config, environ)
    if endpoint is None:
        return Tracing()
    # Only now, because the SDK and its exporter take longer to import than the rest of the router.
    from opta_router.telemetry.export import OtlpTracing  # noqa: PLC0415

    return OtlpTracing(config, endpoint)


def traces_endpoint(config: TelemetryConfig, environ: Mapping[str, str]) -> str | None:
    """The URL that spans are posted to; None for nowhere.

    The configuration wins over ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``, which is used as it stands, and that over
    ``OTEL_EXPORTER_OTLP_ENDPOINT``. To a base URL ``/v1/traces`` is added. ``OTEL_SDK_DISABLED=true`` wins over all.

    Raises:
        ConfigError: the configured endpoint is not a URL.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if config.otlp_endpoint is not None:
        if not _is_http(config.otlp_endpoint):
            raise ConfigError("not a URL", key_path="telemetry.otlp_endpoint", allowed="an http or https URL")
        return _with_path(config.otlp_endpoint)
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        url = environ.get(variable, "").strip()
        if not url:
            continue
        if not _is_http(url):
            # Often meant for other programs of this machine, so it does not keep the router from starting.
            _logger.warning("%s is not an http or https URL; no traces are sent", variable)
            return None
        return url if variable == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" else _with_path(url)
    return None


def _with_path(base: str) -> str:
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(TRACES_PATH) else path + TRACES_PATH).geturl()


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
