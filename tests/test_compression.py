"""Packed bodies: both ways, and never more than the limit."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import BodyTooLarge, InvalidInput, UnsupportedEncoding
from serve_app.compression import accepted, encoding_of, pack, unpack

LIMIT = 10_000
ENCODINGS = ("gzip", "deflate")


@given(st.binary(max_size=2000), st.sampled_from(ENCODINGS))
def test_what_is_packed_can_be_unpacked(body: bytes, encoding: str) -> None:
    assert unpack(pack(body, encoding), encoding, LIMIT) == body


def test_others_can_read_what_we_pack() -> None:
    assert gzip.decompress(pack(b"abc", "gzip")) == b"abc"
    assert zlib.decompress(pack(b"abc", "deflate")) == b"abc"


def test_several_gzip_members_are_one_body() -> None:
    assert unpack(gzip.compress(b"a") + gzip.compress(b"b"), "gzip", LIMIT) == b"ab"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_stops_at_the_limit(encoding: str) -> None:
    assert len(unpack(pack(bytes(LIMIT), encoding), encoding, LIMIT)) == LIMIT
    bomb = pack(bytes(200 * 2**20), encoding)
    assert len(bomb) < 2 * 2**20
    with pytest.raises(BodyTooLarge):
        unpack(bomb, encoding, LIMIT)


def test_a_bomb_of_many_members_stops_at_the_limit() -> None:
    with pytest.raises(BodyTooLarge):
        unpack(gzip.compress(bytes(LIMIT // 2)) * 3, "gzip", LIMIT)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damaged_bodies_are_refused(encoding: str) -> None:
    good = pack(b"abcdef" * 50, encoding)
    for bad in (b"{}", good[:-3], good[:4], good + b"tail"):
        with pytest.raises(InvalidInput):
            unpack(bad, encoding, LIMIT)


@given(st.binary(max_size=200), st.sampled_from(ENCODINGS))
def test_noise_is_refused_and_nothing_worse(noise: bytes, encoding: str) -> None:
    try:
        unpack(noise, encoding, LIMIT)
    except (InvalidInput, BodyTooLarge):
        return


def test_the_header_names_what_is_understood() -> None:
    assert encoding_of("") is None
    assert encoding_of("identity") is None
    assert encoding_of(" GZIP ") == "gzip"
    with pytest.raises(UnsupportedEncoding) as caught:
        encoding_of("br")
    assert "Unsupported compression type" in caught.value.message


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.2, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("*;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("br;q=1.0", None),
        ("gzip;q=nonsense", None),
    ],
)
def test_the_clients_wish_is_followed(header: str, wanted: str | None) -> None:
    assert accepted(header) == wanted
