"""The connection cap, and the version that the repairs are for."""

import resource

import pytest

from opta_router.server import ServerLimits, UnrepairedHypercornError, make_room
from opta_router.server.limits import connection_cap
from opta_router.server.repairs import require_repaired_version


@pytest.mark.parametrize(
    ("soft", "wanted", "cap"),
    [
        (1024, None, 1024 - 64 - 100),
        (1024, 10, 10),
        (1024, 5000, 1024 - 64 - 100),
        (64, None, 8),
        (resource.RLIM_INFINITY, 7, 7),
    ],
)
def test_connection_cap_stays_below_the_descriptor_limit(monkeypatch, soft, wanted, cap):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    assert connection_cap(ServerLimits(max_connections=wanted, backlog=100)) == cap


UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (256, UNLIMITED, 2000 + 64 + 100),
        (256, 4096, 2000 + 64 + 100),
        (256, 1024, 1024),
        (1024, 1024, None),
        (65_536, UNLIMITED, None),
        (UNLIMITED, UNLIMITED, None),
    ],
)
def test_the_descriptor_limit_is_raised_as_far_as_needed_and_allowed(monkeypatch, caplog, soft, hard, raised):
    limit = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limit.__setitem__(slice(None), wanted))
    limits = ServerLimits(max_connections=2000, backlog=100)
    make_room(limits)
    assert limit == [soft if raised is None else raised, hard]
    too_low = limit[0] == 1024
    assert [connection_cap(limits), len(caplog.messages)] == ([1024 - 64 - 100, 1] if too_low else [2000, 0])


def test_a_system_that_refuses_to_raise_the_limit_is_warned_of_and_lived_with(monkeypatch, caplog):
    def refuse(_, wanted):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, UNLIMITED))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    make_room(ServerLimits(max_connections=2000, backlog=100))
    refused, capped = caplog.messages
    assert "256 descriptors cannot be raised to 2164" in refused
    assert "server.max_connections is 2000; the system's limit of descriptors allows 92" in capped


def test_installed_hypercorn_is_the_repaired_one():
    require_repaired_version()


@pytest.mark.parametrize("other", ["0.17.3", "0.18.1", "1.0"])
def test_any_other_hypercorn_is_refused_with_what_to_do(other):
    with pytest.raises(UnrepairedHypercornError, match=rf"hypercorn {other} is installed.*install hypercorn==0\.18\.0"):
        require_repaired_version(other)
