"""Every TraceQL query is held against the traces of a working router, as they came over the wire."""

import pytest

from tests.observability.queries import of_dashboards
from tests.observability.traceql import evaluate

pytestmark = pytest.mark.observability

QUERIES = of_dashboards("tempo")


def test_there_is_something_to_ask():
    assert len(QUERIES) > 8


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_is_by_the_rules_and_finds_what_it_is_after(observed, query):
    found = evaluate(query.filled(observed.variables), observed.collector.spans)
    assert found.spans
    assert ("_over_time" in query.text or "rate()" in query.text) == bool(found.series)
