"""Whether and where traces and metrics are sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from opta_router.telemetry.tracing import Tracing
from policies.errors import ConfigError
from policies.schema import TelemetryConfig

SIGNAL_PATHS: Final = {"traces": "/v1/traces", "metrics": "/v1/metrics"}

Signal: TypeAlias = Literal["traces", "metrics"]

_logger = logging.getLogger(__name__)


def start_tracing(config: TelemetryConfig, environ: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing as configured. Without an endpoint it costs nothing: no thread, and no import of OpenTelemetry."""
    endpoint = signal_endpoint("traces", config, environ)
    if endpoint is None:
        return Tracing()
    # Only now, because the SDK and its exporter take longer to import than the rest of the router.
    from opta_router.telemetry.export import OtlpTracing  # noqa: PLC0415

    return OtlpTracing(config, endpoint)


def signal_endpoint(signal: Signal, config: TelemetryConfig, environ: Mapping[str, str]) -> str | None:
    """The URL that a signal is posted to; None for nowhere.

    The configuration wins over the signal's own variable (``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``,
    ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT``), which is used as it stands, and that over
    ``OTEL_EXPORTER_OTLP_ENDPOINT``. To a base URL ``/v1/traces`` or ``/v1/metrics`` is added; one that ends in either
    is taken as the base before it. ``OTEL_SDK_DISABLED=true`` wins over all.

    Raises:
        ConfigError: the configured endpoint is not a URL.
    """
    if is_disabled(environ):
        return None
    if config.otlp_endpoint is not None:
        if not _is_http(config.otlp_endpoint):
            raise ConfigError("not a URL", key_path="telemetry.otlp_endpoint", allowed="an http or https URL")
        return _with_path(config.otlp_endpoint, signal)
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    for variable in (own, "OTEL_EXPORTER_OTLP_ENDPOINT"):
        url = environ.get(variable, "").strip()
        if not url:
            continue
        if not _is_http(url):
            # Often meant for other programs of this machine, so it does not keep the router from starting.
            _logger.warning("%s is not an http or https URL; no %s are sent", variable, signal)
            return None
        return url if variable == own else _with_path(url, signal)
    return None


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether ``OTEL_SDK_DISABLED`` says that nothing is to be recorded."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _with_path(base: str, signal: Signal) -> str:
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    for known in SIGNAL_PATHS.values():
        path = path.removesuffix(known)
    return parts._replace(path=path + SIGNAL_PATHS[signal]).geturl()


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
