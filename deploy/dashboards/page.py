"""What all dashboards have in common."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from deploy.dashboards.variables import METRICS

TAG: Final = "opta_router"
RESTARTS: Final = "changes(opta_host_restarts_total[1m]) > 0"
"""Where the engine was replaced: a mark across every graph."""


def page(uid: str, title: str, description: str, *variables: Builder[models.VariableModel]) -> builders.Dashboard:
    """An empty dashboard of the last hour, with a link to the others that keeps time and variables."""
    links = builders.DashboardLink("opta_router").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    restarts = builders.AnnotationQuery().name("Engine replaced").datasource(METRICS).enable(True)
    built = builders.Dashboard(title).uid(uid).description(description).tags([TAG]).editable()
    built = built.time("now-1h", "now").refresh("10s").timezone("browser")
    built = built.tooltip(models.DashboardCursorSync.CROSSHAIR)
    built = built.link(links.as_dropdown(False).include_vars(True).keep_time(True))
    built = built.annotation(restarts.icon_color("red").expr(RESTARTS))
    for variable in variables:
        built = built.with_variable(variable)
    return built
