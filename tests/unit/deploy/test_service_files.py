"""What an operator installs or starts holds together, as far as that shows without installing or starting it."""

import itertools
import os
import plistlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from deploy.dashboards.datasources import SCRAPE_INTERVAL
from deploy.dashboards.files import DEPLOY
from opta_router.cli import main
from policies.load import load

UNIT = DEPLOY / "systemd" / "opta-router.service"
PLIST = DEPLOY / "launchd" / "org.opta-router.router.plist"
PROGRAM = "/opt/opta-router/bin/opta-router"
CONFIGS = sorted(file.name for file in DEPLOY.glob("opta*.yaml"))
PLIST_KEYS = {
    # launchd.plist(5)
    "Label": str,
    "UserName": str,
    "GroupName": str,
    "ProgramArguments": list,
    "WorkingDirectory": str,
    "EnvironmentVariables": dict,
    "RunAtLoad": bool,
    "KeepAlive": bool,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "SoftResourceLimits": dict,
    "HardResourceLimits": dict,
    "Umask": int,
}
PLIST_LIMITS = {"Core", "CPU", "Data", "FileSize", "MemoryLock", "NumberOfFiles", "NumberOfProcesses", "Stack"}
SIGNALLED = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""
COMPONENTS = {
    # those of the collector's contrib distribution that we use
    "receivers": {"otlp"},
    "processors": {"memory_limiter", "batch"},
    "exporters": {"otlp", "otlphttp"},
    "extensions": {"health_check"},
}


@pytest.fixture(scope="module")
def plist():
    return plistlib.loads(PLIST.read_bytes())


@pytest.fixture(scope="module")
def unit():
    """Settings by name; the last one counts, as for systemd."""
    return dict(line.split("=", 1) for line in UNIT.read_text("utf-8").splitlines() if re.match(r"\w+=", line))


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def collector():
    return yaml.safe_load((DEPLOY / "collector.yaml").read_text("utf-8"))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_is_valid_and_all_of_it_is_in_effect(config, capsys):
    assert main(["check", "--config", str(DEPLOY / config)]) == 0
    assert "not in effect" not in capsys.readouterr().out


@pytest.mark.parametrize("config", CONFIGS)
def test_a_service_manager_waits_for_the_drain_and_allows_the_connections(config, plist, unit):
    server = load(DEPLOY / config).server
    assert float(server.drain_timeout) < plist["ExitTimeOut"]
    assert float(server.drain_timeout) < float(unit["TimeoutStopSec"].removesuffix("s"))
    descriptors = min(int(unit["LimitNOFILE"]), plist["SoftResourceLimits"]["NumberOfFiles"])
    assert server.max_connections * 2 < descriptors


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path):
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text("utf-8").replace(PROGRAM, sys.executable), encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_runs_under_its_own_user_with_its_limits_and_its_own_journal(unit):
    assert (unit["User"], unit["Group"]) == ("opta", "opta")
    assert unit["ExecStart"].startswith(f"{PROGRAM} serve --config ")
    assert (unit["Restart"], unit["KillMode"], unit["OOMPolicy"]) == ("always", "mixed", "continue")
    assert unit["LimitMEMLOCK"] == "infinity"
    assert (DEPLOY / "systemd" / f"journald@{unit['LogNamespace']}.conf").is_file()


def test_the_plist_has_known_keys_of_the_right_types(plist):
    assert {key: type(value) for key, value in plist.items()} == PLIST_KEYS
    for limits in (plist["SoftResourceLimits"], plist["HardResourceLimits"]):
        assert limits.keys() <= PLIST_LIMITS
        assert all(type(limit) is int for limit in limits.values())
    assert plist["Label"] == PLIST.stem
    assert plist["ProcessType"] in {"Background", "Standard", "Adaptive", "Interactive"}
    assert (plist["UserName"], plist["KeepAlive"], plist["RunAtLoad"]) == ("_opta", True, True)


def test_the_plists_command_hands_signals_to_the_router_and_output_to_the_rotator(plist, tmp_path):
    program = tmp_path / "router.py"
    program.write_text(SIGNALLED, encoding="utf-8")
    rotator = tmp_path / "rotatelogs"
    rotator.write_text('#!/bin/sh\nwhile read -r line; do echo "$line" > "$5"; echo "$line"; done\n', encoding="utf-8")
    rotator.chmod(0o755)
    log = tmp_path / "router.log"
    shell, flag, command = plist["ProgramArguments"]
    for installed, here in (
        (f"{PROGRAM} serve --config /etc/opta/opta.yaml", f"{sys.executable} {program}"),
        ("/usr/sbin/rotatelogs", str(rotator)),
        ("/var/log/opta/router.log", str(log)),
        ("/var/log/opta/current.log", f"{log}.current"),
    ):
        assert command.count(installed) == 1
        command = command.replace(installed, here)
    with subprocess.Popen([shell, flag, command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 7
    assert log.read_text("utf-8") == "ready\n"


def test_the_collectors_components_exist_and_are_wired(collector):
    for section, known in COMPONENTS.items():
        assert {name.partition("/")[0] for name in collector[section]} <= known
    pipelines = collector["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for section in ("receivers", "processors", "exporters"):
        used = set(itertools.chain.from_iterable(pipeline[section] for pipeline in pipelines.values()))
        assert used == set(collector[section])
    assert collector["service"]["extensions"] == list(collector["extensions"])
    for pipeline in pipelines.values():
        assert (pipeline["processors"][0], pipeline["processors"][-1]) == ("memory_limiter", "batch")


def test_the_collector_sends_where_compose_has_somebody_who_listens(collector, compose):
    services = compose["services"]
    tempo = yaml.safe_load((DEPLOY / "compose" / "tempo.yaml").read_text("utf-8"))
    taken = tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert collector["exporters"]["otlp/tempo"]["endpoint"] == taken.replace("0.0.0.0", "tempo")
    assert collector["exporters"]["otlphttp/prometheus"]["endpoint"].startswith("http://prometheus:9090/")
    assert {"tempo", "prometheus"} <= services.keys()
    assert "--web.enable-otlp-receiver" in services["prometheus"]["command"]
    published = {port.rpartition(":")[2] for port in services["collector"]["ports"]}
    protocols = collector["receivers"]["otlp"]["protocols"].values()
    assert published == {protocol["endpoint"].rpartition(":")[2] for protocol in protocols}


def test_configurations_send_to_the_collector_of_compose(compose):
    ports = {port.rpartition(":")[0] for port in compose["services"]["collector"]["ports"]}
    for config in CONFIGS:
        assert load(DEPLOY / config).telemetry.otlp_endpoint.removeprefix("http://") in ports


def test_metrics_are_scraped_as_often_as_they_would_be_pushed():
    scraping = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    assert scraping["global"]["scrape_interval"] == SCRAPE_INTERVAL


def test_tempo_keeps_the_spans_that_are_asked_about():
    tempo = yaml.safe_load((DEPLOY / "compose" / "tempo.yaml").read_text("utf-8"))
    generator = tempo["overrides"]["defaults"]["metrics_generator"]
    assert generator["processors"] == ["local-blocks"]
    # By default Tempo's metrics see SERVER spans alone, and an inference's is a CLIENT one.
    assert tempo["metrics_generator"]["processor"]["local_blocks"]["filter_server_spans"] is False


def test_compose_mounts_what_is_there_pins_its_images_and_listens_on_loopback(compose):
    for service in compose["services"].values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], mount


def test_compose_gives_grafana_its_own_data_sources(compose):
    own = yaml.safe_load((DEPLOY / "compose" / "datasources.yaml").read_text("utf-8"))["datasources"]
    hosts = {re.fullmatch(r"http://(\w+):\d+", source["url"])[1] for source in own}
    assert hosts <= compose["services"].keys()
    targets = [mount.split(":")[1] for mount in compose["services"]["grafana"]["volumes"]]
    assert "/etc/grafana/provisioning/datasources/opta.yaml" in targets
