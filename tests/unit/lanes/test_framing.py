"""Frames: what is sent is what is received, and nothing else ever is."""

import struct
import types
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes import framing, wire
from lanes.errors import WireError

TO_HOST = typing.get_args(wire.ToHost)
FROM_HOST = typing.get_args(wire.FromHost)
LEAVES = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=12),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(hint):
    """Any value of a type that the wire's structs use."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in LEAVES:
        return LEAVES[hint]
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is tuple and args[-1] is not ...:
        return st.tuples(*map(values, args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(*map(values, args), max_size=3)
    return structs(hint)


def structs(cls):
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in msgspec.structs.fields(cls)})


def framed(payload):
    return struct.pack(">I", len(payload)) + payload


def received(data, union=wire.FromHost):
    return list(framing.FrameReader(union).feed(data))


SPOKEN = [
    wire.Hello(7, "token", wire.Versions("0.32", "0.31", "0.6", "cpu")),
    wire.Ready(),
    wire.Events(
        (
            wire.Started("a", 3),
            wire.Delta("a", 0, (1, 70000), "\u00e9\U0001f980"),
            wire.Finished("a", "stop", 3, 2, speculative=wire.SpecCounters(1, 4, 2, 1, 1)),
            wire.Failed("b", wire.FailureCode.ENGINE_ERROR, "out of luck"),
        )
    ),
]


@pytest.mark.parametrize("cls", TO_HOST)
@given(data=st.data())
def test_every_message_to_the_host_arrives_as_it_was_sent(cls, data):
    message = data.draw(structs(cls))
    assert received(framing.encode(message), wire.ToHost) == [message]


@pytest.mark.parametrize("cls", FROM_HOST)
@given(data=st.data())
def test_every_message_from_the_host_arrives_as_it_was_sent(cls, data):
    message = data.draw(structs(cls))
    assert received(framing.encode(message)) == [message]


def test_a_stream_may_be_cut_at_any_byte():
    stream = b"".join(map(framing.encode, SPOKEN))
    for cut in range(len(stream) + 1):
        reader = framing.FrameReader(wire.FromHost)
        assert [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])] == SPOKEN
        assert not reader.incomplete


def test_a_stream_may_come_byte_by_byte_and_an_end_within_a_frame_is_seen():
    reader = framing.FrameReader(wire.FromHost)
    messages = []
    boundaries = 0
    for byte in b"".join(map(framing.encode, SPOKEN)):
        messages += reader.feed(bytes([byte]))
        boundaries += not reader.incomplete
    assert messages == SPOKEN
    assert boundaries == len(SPOKEN)


def test_a_message_is_given_out_once_even_if_its_reader_stops_iterating():
    reader = framing.FrameReader(wire.FromHost)
    for message in reader.feed(b"".join(map(framing.encode, SPOKEN))):
        assert message == SPOKEN[0]
        break
    assert list(reader.feed(b"")) == SPOKEN[1:]


def test_an_oversized_frame_is_refused_at_its_header():
    reader = framing.FrameReader(wire.FromHost)
    with pytest.raises(WireError, match="33554433 bytes announced; at most 33554432"):
        list(reader.feed(struct.pack(">I", framing.MAX_FRAME_BYTES + 1)))
    assert received(struct.pack(">I", framing.MAX_FRAME_BYTES)) == []


def test_a_message_that_would_make_an_oversized_frame_is_not_sent(monkeypatch):
    message = wire.Submit("a", "m", "throughput", wire.TextPrompt("x" * 1000), 1, wire.Sampling())
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", len(framing.encode(message)) - 4)
    assert framing.encode(message)
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", framing.MAX_FRAME_BYTES - 1)
    with pytest.raises(WireError, match="at most"):
        framing.encode(message)


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_and_nothing_else(payload):
    for data in (payload, framed(payload)):
        try:
            messages = received(data)
        except WireError:
            continue
        assert all(isinstance(message, FROM_HOST) for message in messages)


@given(st.sampled_from(SPOKEN), st.data())
def test_a_damaged_frame_is_a_wire_error_or_a_message_and_nothing_else(message, data):
    frame = bytearray(framing.encode(message))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    try:
        messages = received(bytes(frame))
    except WireError:
        return
    assert all(isinstance(message, FROM_HOST) for message in messages)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        msgspec.msgpack.encode({"type": "Ready", "extra": 1}),
        msgspec.msgpack.encode({"type": "Reboot"}),
        msgspec.msgpack.encode({"type": "Cancel", "request_id": "a"}),  # of the other direction
        msgspec.msgpack.encode({"type": "Cancel"}),
        msgspec.msgpack.encode(["Ready"]),
        msgspec.msgpack.encode({"type": "Ready"}) + b"\xc0",
        b"\x81\xa4type\xa5\xff\xff\xff\xff\xff",
        b"\x91" * 100_000 + b"\xc0",
        b"\x82\xa4type\xa5Ready\xa1x" + b"\x91" * 100_000 + b"\xc0",
    ],
)
def test_what_is_not_a_message_of_this_direction_is_refused(payload):
    with pytest.raises(WireError):
        received(framed(payload))


def test_messages_before_a_bad_frame_are_still_given_out():
    reader = framing.FrameReader(wire.FromHost)
    feed = reader.feed(framing.encode(SPOKEN[1]) + framed(b"\xc1"))
    assert next(feed) == SPOKEN[1]
    with pytest.raises(WireError):
        next(feed)


def test_counters_add_up_and_an_empty_comparison_has_no_ratio():
    total = wire.SpecCounters(1, 4, 3, 1, 0) + wire.SpecCounters(2, 8, 3, 1, 4)
    assert total == wire.SpecCounters(3, 12, 6, 2, 4)
    assert total.acceptance_ratio == 0.75
    assert wire.SpecCounters(proposed=4, ignored=4).acceptance_ratio is None


def test_a_round_is_counted_for_who_proposed_and_place_by_place():
    drafted = wire.SpecCounters.of_round("draft_model", 4, 2, 4)
    looked_up = wire.SpecCounters.of_round("prompt_lookup", 6, 6, 6)
    total = drafted + looked_up
    assert (total.rounds, total.proposed, total.accepted, total.rejected) == (2, 10, 8, 2)
    assert (total.lookup_rounds, total.lookup_proposed, total.lookup_accepted) == (1, 6, 6)
    assert (total.draft_accepted, total.draft_rejected) == (2, 2)
    assert (total.accepted_at, total.compared_at) == ((2, 2, 1, 1, 1, 1), (2, 2, 2, 2, 1, 1))
    assert total.acceptance_by_position == (1.0, 1.0, 0.5, 0.5, 1.0, 1.0)
    assert total.mean_accepted == 4.0
    assert wire.SpecCounters().mean_accepted is None
    assert wire.SpecCounters.of_round("prompt_lookup", 0, 0, 0) == wire.SpecCounters()


def test_what_was_not_delivered_is_ignored_wherever_it_stood():
    lost = wire.SpecCounters.of_round("prompt_lookup", 5, 3, 5).undelivered(2)
    assert (lost.accepted, lost.rejected, lost.ignored, lost.lookup_accepted) == (1, 2, 2, 1)
    assert (lost.accepted_at, lost.compared_at) == ((1,), (1, 0, 0, 1, 1))
