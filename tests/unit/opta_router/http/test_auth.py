"""Which client a request comes from."""

import hashlib

import pytest

from opta_router.errors import InvalidKey
from opta_router.http.auth import authenticate
from policies.schema import ClientConfig

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
