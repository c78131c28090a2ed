"""Content codings and their negotiation."""

from __future__ import annotations

import zlib

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from django_localsync.protocol.codings import WORTH_BYTES, Coding, ContentEncoder, pack
from django_localsync.protocol.lines import LineFormat
from django_localsync.protocol.negotiation import choose_coding, choose_format
from django_localsync.protocol.session import SendLine

SDK = "application/vnd.powersync.bson-stream;q=0.9,application/x-ndjson;q=0.8"
CODINGS = [Coding.GZIP, Coding.ZSTD, Coding.IDENTITY]


class Decoder:
    """What an HTTP client does."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._gzip = zlib.decompressobj(31)
        self._frame = zstd.ZstdDecompressor()

    def decode(self, content: bytes) -> bytes:
        if self._coding is Coding.IDENTITY:
            return content
        if self._coding is Coding.GZIP:
            return self._gzip.decompress(content)
        decoded = b""
        while content:
            decoded += self._frame.decompress(content)
            content = b""
            if self._frame.eof:
                content, self._frame = self._frame.unused_data, zstd.ZstdDecompressor()
        return decoded

    @property
    def is_at_the_end(self) -> bool:
        return self._coding is not Coding.GZIP or (self._gzip.eof and not self._gzip.unused_data)


def made_line(seed: int, size: int) -> bytes:
    text = f'{{"data":{seed}}}'.encode()
    return (text * (size // len(text) + 1))[:size] + b"\n"


LINES = st.builds(made_line, st.integers(0, 99), st.sampled_from([0, 20, WORTH_BYTES - 2, WORTH_BYTES, 9000, 300_000]))


@pytest.mark.parametrize("coding", CODINGS)
@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(LINES, st.booleans()), min_size=1, max_size=4), min_size=1, max_size=4))
def test_every_piece_can_be_decoded_as_soon_as_it_is_there(coding: Coding, pieces: list[list[tuple[bytes, bool]]]):
    encoder, decoder = ContentEncoder(coding), Decoder(coding)

    for piece in pieces:
        lines = [SendLine(line, packed=pack(line, coding) if shared else None) for line, shared in piece]
        assert decoder.decode(encoder.encode(lines)) == b"".join(line for line, _ in piece)

    assert decoder.decode(encoder.finish()) == b""
    assert decoder.is_at_the_end


@pytest.mark.parametrize("coding", [Coding.GZIP, Coding.ZSTD])
def test_long_lines_become_smaller_and_short_ones_hardly_larger(coding: Coding):
    encoder = ContentEncoder(coding)
    encoder.encode([SendLine(b"x")])
    long, short = made_line(7, 100_000), made_line(7, 100)

    assert len(encoder.encode([SendLine(long)])) < len(long) / 20
    assert len(encoder.encode([SendLine(short)])) < len(short) + 16
    assert pack(short, coding) is None


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, Coding.IDENTITY),
        ("", Coding.IDENTITY),
        ("gzip, deflate, br", Coding.GZIP),
        ("gzip, deflate, br, zstd", Coding.ZSTD),
        ("GZIP", Coding.GZIP),
        ("*", Coding.ZSTD),
        ("zstd;q=0.5, gzip;q=0.8", Coding.GZIP),
        ("zstd;q=0, *", Coding.GZIP),
        ("gzip;q=0", Coding.IDENTITY),
        ("gzip;q=0.2, identity;q=0.5", Coding.IDENTITY),
        ("gzip; q=0.3 , identity;q=0", Coding.GZIP),
        ("identity;q=0", Coding.IDENTITY),  # nothing is refused
        ("gzip;q=nan", Coding.IDENTITY),
        ("gzip;q=much", Coding.IDENTITY),
        ("br", Coding.IDENTITY),
    ],
)
def test_the_client_chooses_the_coding(header: str | None, coding: Coding):
    assert choose_coding(header, [Coding.ZSTD, Coding.GZIP, Coding.IDENTITY]) is coding


@pytest.mark.parametrize(
    ("header", "format"),
    [
        (None, LineFormat.NDJSON),
        ("*/*", LineFormat.NDJSON),
        (SDK, LineFormat.NDJSON),
        ("text/html", LineFormat.NDJSON),
        ("application/vnd.powersync.bson-stream", LineFormat.BSON),
        ("Application/Vnd.PowerSync.BSON-Stream;q=0.5, text/html", LineFormat.BSON),
        ("application/vnd.powersync.bson-stream, application/x-ndjson;q=0", LineFormat.BSON),
        ("application/vnd.powersync.bson-stream, application/x-ndjson;q=0, */*", LineFormat.BSON),
        ("application/vnd.powersync.bson-stream, */*", LineFormat.NDJSON),
        ("application/vnd.powersync.bson-stream;q=0", LineFormat.NDJSON),
    ],
)
def test_bson_is_for_those_who_accept_nothing_else(header: str | None, format: LineFormat):
    assert choose_format(header) is format
