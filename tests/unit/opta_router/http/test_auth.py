"""Which client a request comes from, and who may administer."""

import hashlib

import pytest

from opta_router.errors import AdminForbidden, InvalidKey
from opta_router.http.auth import authenticate, authorize_admin
from policies.schema import ClientConfig, ServerConfig

KEY, OTHER = "opta-0123456789abcdef", "opta-fedcba9876543210"
CLIENTS = [
    ClientConfig(name="ann", key_sha256=hashlib.sha256(KEY.encode()).hexdigest()),
    ClientConfig(name="bob", key_sha256=hashlib.sha256(OTHER.encode()).hexdigest()),
]


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"authorization": f"Bearer {KEY}"}, "ann"),
        ({"authorization": f"bearer  {OTHER} "}, "bob"),
        ({"x-api-key": OTHER}, "bob"),
        ({"authorization": f"Bearer {KEY}", "x-api-key": OTHER}, "ann"),
        ({"authorization": "Basic eDp5", "x-api-key": OTHER}, "bob"),
    ],
)
def test_a_key_names_its_client_in_either_header(headers, name):
    assert authenticate(CLIENTS, headers) == name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {CLIENTS[0].key_sha256}"},
        {"authorization": "Bearer ann"},
        {"x-api-key": "h\xe9"},
        {"x-client-id": "ann"},
    ],
)
def test_without_a_known_key_nobody_gets_in_and_the_key_is_not_repeated(headers):
    with pytest.raises(InvalidKey) as caught:
        authenticate(CLIENTS, headers)
    assert "opta-" not in caught.value.message


@pytest.mark.parametrize("headers", [{}, {"authorization": f"Bearer {KEY}"}])
def test_where_no_client_is_configured_everybody_is_anonymous(headers):
    assert authenticate([], headers) is None


# the admin


def admin_of(host="127.0.0.1", key=None):
    return ServerConfig(host=host, admin_key_sha256=hashlib.sha256(key.encode()).hexdigest() if key else None)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "192.0.2.1", "router.example"]
)
def test_the_admin_key_is_needed_wherever_the_router_listens_once_there_is_one(host):
    server = admin_of(host, KEY)
    assert authorize_admin(server, {"authorization": f"Bearer {KEY}"}) == "the admin key"
    assert authorize_admin(server, {"x-api-key": KEY}) == "the admin key"
    for headers in ({}, {"authorization": f"Bearer {OTHER}"}, {"x-api-key": server.admin_key_sha256}):
        with pytest.raises(InvalidKey) as caught:
            authorize_admin(server, headers)
        assert "opta-" not in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost"])
def test_without_an_admin_key_whoever_is_on_this_machine_may_administer(host):
    assert authorize_admin(admin_of(host), {"authorization": f"Bearer {OTHER}"}) == "whoever is on this machine"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.1", "router.example", "127.0.0.1.example", "localhost.example"]
)
def test_without_an_admin_key_nobody_administers_a_router_that_others_reach(host):
    with pytest.raises(AdminForbidden):
        authorize_admin(admin_of(host), {"authorization": f"Bearer {KEY}"})
