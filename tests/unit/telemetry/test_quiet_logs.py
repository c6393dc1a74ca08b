"""What a collector that is down may write."""

import logging

from opta_router.telemetry.quiet_logs import LOGGERS, OncePerInterval, quieten


def test_a_logger_says_one_line_in_an_interval_and_then_how_many_it_kept_back(caplog):
    now_s = 0.0
    logger = logging.getLogger("test.quiet")
    limit = OncePerInterval(60.0, lambda: now_s)
    logger.addFilter(limit)
    try:
        for now_s in (0.0, 1.0, 59.9, 60.0, 119.0, 500.0, 560.0):
            logger.warning("down at %s", now_s)
    finally:
        logger.removeFilter(limit)
    assert caplog.messages == [
        "down at 0.0",
        "down at 60.0 (2 lines of telemetry held back)",
        "down at 500.0 (1 lines of telemetry held back)",
        "down at 560.0",
    ]


def test_all_loggers_of_telemetry_have_the_one_limit_once(caplog, fresh_limit):
    quieten()
    quieten()
    for name in LOGGERS:
        logging.getLogger(name).warning("from %s", name)
    assert caplog.messages == [f"from {LOGGERS[0]}"]
    for name in LOGGERS:
        assert [type(limit) for limit in logging.getLogger(name).filters].count(OncePerInterval) == 1
