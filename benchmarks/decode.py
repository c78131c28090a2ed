"""How long pgoutput's row messages and common values take to decode: `python -m benchmarks.decode`."""

from __future__ import annotations

import struct
from timeit import repeat

from django_localsync.pgoutput.frames import decode_frame
from django_localsync.pgoutput.messages import decode_message
from django_localsync.pgoutput.types import PgType
from django_localsync.pgoutput.values import ValueOptions, converter

UUID = "3f2c9b52-0d4e-4d5c-9a1b-6a7f3c1d2e90"
MOMENT = "2024-05-06 07:08:09.12345+00"
ROWS = {
    "8 columns": ["123456", UUID, "Noe på norsk, middels langt, ærlig", "t", None, MOMENT, "42", "x" * 200],
    "4 columns": ["1", "2", "abc def", "t"],
}
VALUES = {"int4": "123456", "bool": "t", "timestamptz": MOMENT, "int4[]": "{1,2,3,4}", "text[]": '{a,b,"c d",NULL}'}


def insert(row: list[str | None]) -> bytes:
    """The pgoutput message that inserts a row."""
    columns = [b"n" if text is None else b"t" + struct.pack(">I", len(text.encode())) + text.encode() for text in row]
    return b"I" + struct.pack(">IcH", 16384, b"N", len(row)) + b"".join(columns)


def report(name: str, statement: str, **names: object) -> None:
    """Print the best of several runs, since other work on the machine only ever slows one down."""
    seconds = min(repeat(statement, globals=names, number=20_000, repeat=10)) / 20_000
    print(f"{name:32} {seconds * 1e6:6.2f} µs {1 / seconds:12,.0f}/s")


for label, row in ROWS.items():
    payload = insert(row)
    report(f"{label}, {len(payload)} bytes", "decode(payload)", decode=decode_message, payload=payload)
report("frame", "decode(frame)", decode=decode_frame, frame=b"w" + bytes(24) + insert(ROWS["8 columns"]))
for type_name, text in VALUES.items():
    report(type_name, "convert(text)", convert=converter(PgType.named(type_name), ValueOptions()), text=text)
