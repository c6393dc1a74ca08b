"""The compose file, read by compose itself."""

import json
import subprocess

import pytest

from tests.observability.fetched import debian
from tests.observability.queries import DEPLOY

pytestmark = pytest.mark.observability


def test_compose_takes_the_file():
    """It checks against the compose specification, and needs no daemon for that."""
    program = debian("docker-compose", "docker-compose")
    command = [program, "--file", str(DEPLOY / "compose.yaml"), "config", "--format", "json"]
    read = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (read.returncode, read.stderr) == (0, "")
    services = json.loads(read.stdout)["services"]
    assert set(services) == {"collector", "tempo", "prometheus", "grafana"}
    assert {port["host_ip"] for service in services.values() for port in service["ports"]} == {"127.0.0.1"}


def test_compose_would_refuse_a_wrong_one(tmp_path):
    program = debian("docker-compose", "docker-compose")
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text("utf-8").replace("mem_limit:", "memory_limit:"), "utf-8")
    read = subprocess.run([program, "--file", str(wrong), "config"], capture_output=True, text=True, check=False)
    assert read.returncode != 0
    assert "memory_limit" in read.stderr
