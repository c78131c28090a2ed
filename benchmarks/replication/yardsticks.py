"""What the replicator is measured by: the same work with nothing done to the rows, and this machine's Python."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Self
from zlib import crc32

import orjson
import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from .source import PUBLICATION

SLOT = "bench_yardstick"
REFERENCE_LOOP_US = 3.3
"""What `loop_microseconds` gives on the machine of the speed goals: two cores, Python 3.11."""

_ROW = [b"3f2c9b52-0d4e-4d5c-9a1b-6a7f3c1d2e90", b"user-345", b"group-45", b"row 12345", b"a" * 96, b"12345", b"f",
        b"2026-11-22 18:17:15.503921+00"]  # fmt: skip
_NAMES = ("id", "owner_id", "group_id", "name", "body", "n", "done", "created_at")


def loop_microseconds() -> float:
    """CPU time in which this machine decodes a row, makes JSON of it and a checksum, in the plainest Python.

    The replicator's Python cannot be faster than a small multiple of it. Best of ten, for other work on the machine
    only ever slows one down.
    """
    message = b"N\0\x08" + b"".join(b"t" + struct.pack(">I", len(value)) + value for value in _ROW)
    return min(_loop(message, 5000) for _ in range(10))


def _loop(message: bytes, times: int) -> float:
    length_at = struct.Struct(">I").unpack_from
    began = time.process_time()
    for _ in range(times):
        values = []
        position = 3
        for _ in range(8):
            (length,) = length_at(message, position + 1)
            position += 5
            values.append(message[position : position + length].decode())
            position += length
        crc32(orjson.dumps(dict(zip(_NAMES, values, strict=True))))
    return (time.process_time() - began) / times * 1e6


class PlainReceiver:
    """Reads what is committed from now on as the replicator does, and forgets it.

    `pg_recvlogical` where there is one, else the same in Python.
    """

    def __init__(self, source: psycopg.Connection, url: str, programs: Path | None) -> None:
        self._source, self._url = source, url
        self._program = (
            shutil.which("pg_recvlogical", path=str(programs)) if programs else shutil.which("pg_recvlogical")
        )
        self.name = "pg_recvlogical" if self._program else "a plain receiver in Python"

    def __enter__(self) -> Self:
        self._source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])
        return self

    def __exit__(self, *_: object) -> None:
        self._source.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])

    def seconds_until(self, lsn: str) -> float:
        """Read to that position; how long it took."""
        began = time.perf_counter()
        if self._program:
            self._run_program(lsn)
        else:
            self._read(lsn)
        return time.perf_counter() - began

    def _run_program(self, lsn: str) -> None:
        options = ["--option=proto_version=1", f"--option=publication_names={PUBLICATION}"]
        command = [
            str(self._program),
            f"--dbname={self._url}",
            f"--slot={SLOT}",
            "--start",
            "--no-loop",
            "--file=/dev/null",
        ]
        subprocess.run([*command, f"--endpos={lsn}", *options], check=True)

    def _read(self, lsn: str) -> None:
        high, low = lsn.split("/")
        end = int(high, 16) << 32 | int(low, 16)
        with psycopg.connect(make_conninfo(self._url, replication="database"), autocommit=True) as connection:
            pgconn = connection.pgconn
            options = f"proto_version '1', publication_names '{PUBLICATION}'"
            result = pgconn.exec_(f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 ({options})".encode())
            assert result.status == pq.ExecStatus.COPY_BOTH, result.error_message
            while True:
                _, frame = pgconn.get_copy_data(0)
                place = 9 if frame[:1] == b"w" else 1  # the server's position, in data and in keepalives
                if int.from_bytes(frame[place : place + 8], "big") >= end:
                    pgconn.finish()
                    return


def copy_seconds(source: psycopg.Connection, storage: psycopg.Connection, tables: tuple[str, ...]) -> float:
    """COPY out | COPY in: how long the rows take into a table like their own, in the storage's database."""
    began = time.perf_counter()
    for table in tables:
        columns = "id uuid PRIMARY KEY, " + ", ".join(f"{name} text" for name in _NAMES[1:])
        storage.execute(f"CREATE TABLE bench_copied ({columns})")
        with (
            source.cursor().copy(f"COPY {table} TO STDOUT") as rows,
            storage.cursor().copy("COPY bench_copied FROM STDIN") as copied,
        ):
            for block in rows:
                copied.write(block)
        storage.execute("DROP TABLE bench_copied")
    return time.perf_counter() - began
