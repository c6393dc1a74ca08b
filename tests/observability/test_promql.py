"""Every PromQL expression is asked of databases that a working router filled, by scrape and by push."""

import pytest

from tests.observability.databases import QueryFailed
from tests.observability.queries import all_promql, exemplar_labels, model_names, of_dashboards

pytestmark = pytest.mark.observability
every_database = pytest.mark.parametrize("path", ["scraped", "pushed"])


def test_there_is_something_to_ask():
    assert len(of_dashboards("prometheus")) > 30
    assert {metric for query in all_promql() for metric in query.metrics} > {"opta_lane_weight"}


@every_database
def test_every_metric_that_is_asked_for_is_there(observed, path):
    there = observed.databases[path].names("__name__")
    asked = {metric: query.where for query in all_promql() for metric in query.metrics}
    assert {metric: where for metric, where in asked.items() if metric not in there} == {}


@every_database
def test_every_query_has_data_under_load_and_its_legend_has_every_label(observed, path):
    database = observed.databases[path]
    empty, unlabelled = [], []
    for query in all_promql():
        series = database.over(query.filled(observed.variables), observed.begun_s, observed.ended_s)
        if not series:
            empty.append((query.where, query.text))
        unlabelled += [(query.where, one.labels) for one in series if not query.labels <= set(one.labels)]
        assert [one for one in series if one.has_nan] == [], query.where
    assert empty == []
    assert unlabelled == []


@pytest.mark.parametrize("lane", ["interactive", "throughput"])
def test_one_lane_can_be_chosen(observed, lane):
    chosen = {**observed.variables, "lane": lane}
    for query in of_dashboards("prometheus"):
        for one in observed.databases["scraped"].over(query.filled(chosen), observed.begun_s, observed.ended_s):
            assert {one.labels.get("lane", lane), one.labels.get("opta_lane", lane)} == {lane}, query.where


def test_nothing_is_nan_before_the_first_request_and_after_the_last(observed):
    for start_s, end_s in ((observed.idle_s, observed.begun_s), (observed.idle_again_s - 1, observed.idle_again_s)):
        for query in all_promql():
            series = observed.databases["scraped"].over(query.filled(observed.variables), start_s, end_s)
            assert [one for one in series if one.has_nan] == [], query.where


def test_a_histogram_leads_to_the_traces_of_its_requests(observed):
    (label,) = exemplar_labels()
    text = "gen_ai_server_time_to_first_token_seconds_bucket"
    exemplars = observed.databases["scraped"].exemplars(text, observed.begun_s, observed.idle_again_s)
    sent = {span.trace_id for span in observed.collector.spans}
    assert exemplars
    assert {labels[label] for labels in exemplars} <= sent


def test_the_variable_for_models_has_the_models(observed):
    (match,) = model_names()
    assert "opta-tiny" in observed.databases["scraped"].names("model", match)


def test_a_metric_of_another_name_would_be_noticed(observed):
    (query,) = [query for query in of_dashboards("prometheus") if query.where == "lanes/Waiting/A"]
    text = query.filled(observed.variables)
    assert observed.databases["scraped"].over(text, observed.begun_s, observed.ended_s)
    renamed = text.replace("opta_lane_queue_depth", "opta_lane_queue_length")
    assert observed.databases["scraped"].over(renamed, observed.begun_s, observed.ended_s) == []
    with pytest.raises(QueryFailed):
        observed.databases["scraped"].over(text + ")", observed.begun_s, observed.ended_s)
