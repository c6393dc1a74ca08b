"""Which files are built, and their text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards.alerts import grafana_rules, prometheus_rules
from deploy.dashboards.datasources import datasources
from deploy.dashboards.hosts import hosts
from deploy.dashboards.lanes import lanes
from deploy.dashboards.speculation import speculation
from deploy.dashboards.traces import traces

DEPLOY: Final = Path(__file__).parents[1]
PROVISIONING: Final = "grafana/provisioning"
_HEADER: Final = "# Built by `uv run python -m deploy.dashboards`; change it there.\n"


def rendered() -> dict[str, str]:
    """The text of each file, by its path in ``deploy/``."""
    dashboards = {"lanes": lanes(), "speculation": speculation(), "traces": traces(), "hosts": hosts()}
    files = {f"{PROVISIONING}/dashboards/opta/{name}.json": _json(built) for name, built in dashboards.items()}
    documents: Mapping[str, dict[str, Any]] = {
        f"{PROVISIONING}/dashboards/opta.yaml": _provider(),
        f"{PROVISIONING}/datasources/opta.yaml": datasources(
            prometheus="http://localhost:9090", tempo="http://localhost:3200"
        ),
        "compose/datasources.yaml": datasources(prometheus="http://prometheus:9090", tempo="http://tempo:3200"),
        f"{PROVISIONING}/alerting/opta.yaml": grafana_rules(),
        "prometheus/alerts.yaml": prometheus_rules(),
    }
    return files | {path: _yaml(document) for path, document in documents.items()}


def _provider() -> dict[str, Any]:
    provider = {
        "name": "opta_router",
        "folder": "opta_router",
        "type": "file",
        "allowUiUpdates": True,
        "options": {"path": "/etc/grafana/provisioning/dashboards/opta"},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _json(built: Dashboard) -> str:
    whole = built.build()
    # Links to a panel go by its id.
    for number, panel in enumerate(whole.panels or [], start=1):
        panel.id_val = number
    return json.dumps(whole, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _yaml(document: Mapping[str, Any]) -> str:
    return _HEADER + yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)
