import pytest

from policies.quantities import ByteSize, Digest, KeepAlive, MemoryAmount, Seconds, Secret


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1.5m", 90),
        ("1d", 86400),
        (2, 2),
        (0, 0),
    ],
)
def test_a_duration_reads_as_seconds(written: object, seconds: float) -> None:
    assert Seconds.parse(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "s", "5 minutes", "-5s", "1e3s", "9" * 400 + "s", -1, True, None, [], float("inf"), float("nan")]
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        Seconds.parse(written)


def test_only_a_keep_alive_may_be_minus_one_which_is_forever() -> None:
    assert KeepAlive.parse(-1).forever
    assert not KeepAlive.parse(0).forever
    with pytest.raises(ValueError, match="not a duration"):
        KeepAlive.parse(-2)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [("4MiB", 4194304), ("8 GB", 8_000_000_000), ("1KiB", 1024), ("1kB", 1000), ("7B", 7), (7, 7)],
)
def test_a_size_reads_as_bytes(written: object, size_bytes: int) -> None:
    assert ByteSize.parse(written) == size_bytes


@pytest.mark.parametrize("written", ["", "4 mib", "0MiB", "0.1", 0, -5, 1.5, True, None, "9" * 400])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="not a size"):
        ByteSize.parse(written)


def test_a_share_of_memory_is_of_what_the_device_has_and_a_size_never_exceeds_it() -> None:
    assert MemoryAmount.parse("90%").of(1000) == 900
    assert MemoryAmount.parse("1KiB").of(4096) == 1024
    assert MemoryAmount.parse("1KiB").of(1000) == 1000


@pytest.mark.parametrize("written", ["0%", "101%", "-1%", "%", 0, "half", None])
def test_what_is_no_amount_of_memory_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="not a"):
        MemoryAmount.parse(written)


def test_a_digest_is_compared_in_lower_case_whatever_case_it_was_written_in() -> None:
    assert Digest.parse("AB" * 32) == "ab" * 32


def test_neither_digests_nor_secrets_show_in_a_repr() -> None:
    assert "ab" * 32 not in repr(Digest.parse("ab" * 32))
    assert "hunter2" not in repr({"authorization": Secret("hunter2")})
