"""Whose telemetry it is."""

import socket

from opta_router.telemetry.resource import resource_of
from policies.schema import TelemetryConfig


def test_two_machines_are_two_instances_of_one_service():
    attributes = resource_of(TelemetryConfig(service_name="lab")).attributes
    assert (attributes["service.name"], attributes["service.instance.id"]) == ("lab", socket.gethostname())


def test_an_operator_names_the_instance(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=left,service.name=ignored")
    attributes = resource_of(TelemetryConfig(service_name="lab")).attributes
    assert (attributes["service.name"], attributes["service.instance.id"]) == ("lab", "left")
