"""The connection cap, and the version that the repairs are for."""

import resource

import pytest

from opta_router.server import ServerLimits, UnrepairedHypercornError
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


def test_installed_hypercorn_is_the_repaired_one():
    require_repaired_version()


@pytest.mark.parametrize("other", ["0.17.3", "0.18.1", "1.0"])
def test_any_other_hypercorn_is_refused_with_what_to_do(other):
    with pytest.raises(UnrepairedHypercornError, match=rf"hypercorn {other} is installed.*install hypercorn==0\.18\.0"):
        require_repaired_version(other)
