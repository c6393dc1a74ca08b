"""From tokens to text, against an oracle that decodes everything at once."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from lanes.engines.scripted import ScriptedTokenizer
from lanes.host.text import TextStream

SPECIAL = 256


def byte_characters():
    """The character that byte-level BPE writes for each byte (Radford et al., GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = (byte for byte in range(256) if byte not in printable)
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(moved)}}


def byte_level_tokenizer():
    """One token for each byte, and one special token: nothing may be simpler about its text than about a real one's."""
    tokenizer = Tokenizer(BPE(vocab={char: byte for byte, char in byte_characters().items()}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    assert tokenizer.token_to_id("<|end|>") == SPECIAL
    return tokenizer


class Fast:
    """A tokenizer as mlx-lm wraps those of the tokenizers library."""

    backend_tokenizer = byte_level_tokenizer()


def fast(data):
    return Fast(), tuple(data)


def slow(data):
    return ScriptedTokenizer(), tuple(byte + 1 for byte in data)


KINDS = pytest.mark.parametrize("kind", [fast, slow])
texts = st.text(st.sampled_from("abcn\n \u00e9\u4e2d\U0001f980\ufffd"), max_size=30)
raw_bytes = st.lists(st.sampled_from([*b"ab ", 0xC3, 0xA9, 0xF0, 0x9F, 0xA6, 0x80, 0xFF, 0xE4]), max_size=30).map(bytes)
stops = st.lists(st.text(st.sampled_from("abn\n\u00e9\U0001f980"), min_size=1, max_size=4), max_size=3).map(tuple)


def in_pushes(token_ids, sizes):
    """Cut ``token_ids`` into pushes of the given sizes, over and over."""
    at = 0
    while at < len(token_ids):
        for size in sizes:
            yield token_ids[at : at + size]
            at += size


def stream(tokenizer, pushes, stop=()):
    """Everything a TextStream gives: the pieces' texts, what `finish` adds, and how many tokens were kept."""
    text = TextStream(tokenizer, stop)
    pieces, kept = [], 0
    for push in pushes:
        piece = text.push(push)
        kept += piece.kept
        pieces.append(piece.text)
        if piece.stopped:
            return pieces, "", kept, True
    return pieces, text.finish(), kept, False


@KINDS
@given(data=raw_bytes | texts.map(str.encode), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_no_text_is_lost_or_doubled_and_no_character_is_torn(kind, data, sizes):
    tokenizer, token_ids = kind(data)
    pieces, rest, kept, _ = stream(tokenizer, in_pushes(token_ids, sizes))
    whole = data.decode(errors="replace")
    assert "".join(pieces) + rest == whole
    assert kept == len(token_ids)


@KINDS
@given(text=texts, stop=stops, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@example(text="aab", stop=("ab",), sizes=[1])
@example(text="a\u00e9", stop=("\u00e9",), sizes=[1])
def test_an_answer_ends_before_its_first_stop_string_and_not_a_token_later(kind, text, stop, sizes):
    tokenizer, token_ids = kind(text.encode())
    pieces, rest, kept, stopped = stream(tokenizer, in_pushes(token_ids, sizes), stop)
    expected, tokens = oracle(text.encode(), stop)
    assert "".join(pieces) + rest == expected
    if stopped:
        assert kept == tokens
        assert rest == ""
    else:
        assert kept == len(token_ids)


def oracle(data, stop):
    """The text up to the first stop string, as soon as one is complete, and how many one-byte tokens that took."""
    for tokens in range(len(data) + 1):
        text = data[:tokens].decode(errors="ignore")
        found = [at for s in stop if (at := text.find(s)) >= 0]
        if found:
            return text[: min(found)], tokens
    return data.decode(), len(data)


@KINDS
@given(text=texts, stop=stops)
def test_what_is_held_back_could_still_become_a_stop_string_and_nothing_more(kind, text, stop):
    tokenizer, token_ids = kind(text.encode())
    streamed = TextStream(tokenizer, stop)
    given_out = ""
    for count, token in enumerate(token_ids, start=1):
        piece = streamed.push((token,))
        given_out += piece.text
        if piece.stopped:
            return
        whole = text.encode()[:count].decode(errors="ignore").removesuffix("\ufffd")
        held = whole[len(given_out) :].rstrip("\ufffd")  # a replacement character may be half of something else
        assert whole.startswith(given_out.rstrip("\ufffd"))
        assert held == "" or any(s.startswith(held) and s != held for s in stop)


@KINDS
def test_a_character_is_given_out_when_its_last_byte_has_come(kind):
    tokenizer, token_ids = kind("\U0001f980!".encode())
    pieces, rest, _, _ = stream(tokenizer, ((token,) for token in token_ids))
    assert (pieces, rest) == (["", "", "", "\U0001f980", "!"], "")


@KINDS
def test_an_answer_cut_within_a_character_ends_with_a_replacement(kind):
    tokenizer, token_ids = kind("a\U0001f980".encode()[:3])
    pieces, rest, _, _ = stream(tokenizer, [token_ids])
    assert "".join(pieces) + rest == "a\ufffd"


def test_special_tokens_have_no_text_wherever_they_stand():
    token_ids = (SPECIAL, *"\u00e9".encode()[:1], SPECIAL, *"\u00e9".encode()[1:], *b"x", SPECIAL)
    pieces, rest, kept, _ = stream(Fast(), [token_ids[:3], token_ids[3:]])
    assert "".join(pieces) + rest == "\u00e9x"
    assert kept == len(token_ids)


def test_a_token_that_completes_a_stop_string_is_kept_and_those_behind_it_are_not():
    tokenizer, token_ids = fast(b"one\n\ntwo")
    assert TextStream(tokenizer, ("\n\n",)).push(token_ids) == (5, "one", True)


def test_when_no_more_tokens_come_what_was_held_back_is_given_out():
    tokenizer, token_ids = fast(b"value =")
    streamed = TextStream(tokenizer, (" == ",))
    assert streamed.push(token_ids).text == "value"
    assert streamed.finish() == " ="
