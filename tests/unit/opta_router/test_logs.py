"""What is logged, as it is written."""

import json
import logging
import os

import pytest

from opta_router import logs
from opta_router.log_writer import LogWriter
from opta_router.logs import JsonFormatter, Subject, TextFormatter
from opta_router.telemetry.histograms import Identity

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def pipe():
    """A pipe of the system's: what is written to one end is read from the other."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "wb", 0) as writer:
        yield reader, writer


@pytest.fixture
def logger():
    """One of no hierarchy: nobody else takes what it says."""
    return logging.Logger("test.logs", logging.INFO)


def written(logger, pipe, formatter, log):
    """The lines that `log` has written."""
    reader, writer = pipe
    handler = LogWriter(writer.fileno())
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    log(logger)
    handler.close()
    writer.close()
    assert handler.dropped == 0
    return reader.read().splitlines()


@pytest.fixture
def about():
    """Makes what is logged be about a request."""
    tokens = []

    def set_subject(*subject):
        tokens.append(logs.subject.set(Subject(*subject)))

    yield set_subject
    for token in tokens:
        logs.subject.reset(token)


def test_a_line_for_machines_is_one_object_with_the_ids_of_its_request(logger, pipe, about):
    about("r-1", Identity(0xA, 0xB), TRACEPARENT)

    def log(logger):
        logger.warning("two\nlines of %s", "it", extra={"fields": {"status": 200}})

    (line,) = map(json.loads, written(logger, pipe, JsonFormatter(), log))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "test.logs",
        "message": "two\nlines of it",
        "request_id": "r-1",
        "trace_id": f"{0xA:032x}",
        "span_id": f"{0xB:016x}",
        "status": 200,
    }


@pytest.mark.parametrize(("traceparent", "trace_id"), [(TRACEPARENT, TRACEPARENT[3:35]), ("00-x", None), (None, None)])
def test_a_request_that_is_not_traced_has_the_trace_of_its_client(logger, pipe, about, traceparent, trace_id):
    about("r-1", None, traceparent)
    (line,) = map(json.loads, written(logger, pipe, JsonFormatter(), lambda logger: logger.info("said")))
    assert (line.get("trace_id"), "span_id" in line) == (trace_id, False)


def test_a_fault_is_one_line_with_its_traceback(logger, pipe):
    def log(logger):
        try:
            json.loads("broken")
        except ValueError:
            logger.exception("failed")

    (line,) = map(json.loads, written(logger, pipe, JsonFormatter(), log))
    assert line["exception"].startswith("Traceback")
    assert line["exception"].splitlines()[-1].startswith("json.decoder.JSONDecodeError")


def test_a_line_for_people_ends_with_the_request(logger, pipe, about):
    assert written(logger, pipe, TextFormatter(), lambda logger: logger.info("nobody's"))[0].endswith(
        " INFO test.logs: nobody's"
    )


def test_a_line_for_people_names_the_request(logger, pipe, about):
    about("r-1")
    assert written(logger, pipe, TextFormatter(), lambda logger: logger.info("said"))[0].endswith(" said [r-1]")


def test_a_full_disk_loses_lines_and_counts_them(logger):
    with open("/dev/full", "wb", 0) as full:
        handler = LogWriter(full.fileno())
        logger.addHandler(handler)
        for _ in range(3):
            logger.info("lost")
        handler.close()
    assert handler.dropped == 3


def test_a_reader_that_stalls_holds_up_nobody(logger, pipe):
    reader, writer = pipe
    handler = LogWriter(writer.fileno(), max_lines=4)
    logger.addHandler(handler)
    line = "x" * 1_000_000  # more than any pipe takes
    for _ in range(20):
        logger.info(line)
    assert 20 - 4 - 1 <= handler.dropped <= 20 - 4
    kept = 20 - handler.dropped
    assert [reader.readline() for _ in range(kept)] == [f"{line}\n"] * kept
    handler.close()


def test_a_record_that_cannot_be_formatted_is_counted_and_nothing_of_it_is_shown(logger, pipe, capfd):
    reader, writer = pipe
    handler = LogWriter(writer.fileno())
    logger.addHandler(handler)
    logger.info("%d canary", "no number")
    handler.close()
    writer.close()
    assert (handler.dropped, reader.read(), capfd.readouterr().err) == (1, "", "")
