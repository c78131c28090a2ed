"""Records what a real server's pgoutput sends for an SQL script, frame by frame.

`python -m tests.pgoutput_capture <url>` makes tests/goldens/pgoutput.json anew; the database must be empty.
"""

from __future__ import annotations

import json
import re
import select
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq

from django_localsync.pgoutput.frames import XLogData, decode_frame
from django_localsync.pgoutput.messages import Begin, Commit, LogicalMessage, Message, decode_message
from django_localsync.storage.connections import TEXT_FORMAT

GOLDENS = Path(__file__).parent / "goldens"
SCRIPT = GOLDENS / "pgoutput.sql"
FRAMES = GOLDENS / "pgoutput.json"

END = "end of capture"
DEADLINE_S = 20.0


def read_script() -> tuple[list[str], list[str]]:
    """The golden script's statements: those that prepare, and those that are replicated."""
    preparation, _, replicated = SCRIPT.read_text().partition("-- replicated from here on")
    return _statements(preparation), _statements(replicated)


def read_goldens() -> list[bytes]:
    """The recorded frames."""
    return [bytes.fromhex(frame) for frame in json.loads(FRAMES.read_text())["frames"]]


def capture(url: str, preparation: Sequence[str], replicated: Sequence[str], publications: str) -> list[bytes]:
    """Run the statements and give the frames (CopyData payloads) of the replicated ones, keepalives included."""
    with closing(connect(url)) as session, closing(connect(url, replication="database")) as walsender:
        for statement in preparation:
            session.execute(statement)
        slot = f"capture_{session.info.dbname}"
        walsender.execute(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')")
        for statement in [*replicated, f"SELECT pg_logical_emit_message(true, '{END}', '')"]:
            session.execute(statement)
        return read_frames(walsender, slot, publications)


def connect(url: str, **parameters: Any) -> psycopg.Connection:
    """A connection that prints values as our own do."""
    options = " ".join(f"-c {name}={value}" for name, value in TEXT_FORMAT.items())
    return psycopg.connect(url, autocommit=True, options=options, **parameters)


def messages(frames: Sequence[bytes]) -> list[Message]:
    """The messages of all XLogData frames, without transactions that are empty (servers differ in sending them)."""
    decoded: list[Message] = []
    for frame in map(decode_frame, frames):
        if isinstance(frame, XLogData):
            message = decode_message(frame.payload)
            if isinstance(message, Commit) and isinstance(decoded[-1], Begin):
                decoded.pop()
            else:
                decoded.append(message)
    return decoded


def _statements(script: str) -> list[str]:
    without_comments = re.sub(r"^--.*$", "", script, flags=re.MULTILINE)
    return [part.strip() for part in without_comments.split(";\n") if part.strip()]


def read_frames(walsender: psycopg.Connection, slot: str, publications: str) -> list[bytes]:
    """What a slot sends from where it began to the transaction that ends the capture."""
    pgconn = walsender.pgconn
    options = f"proto_version '1', publication_names '{publications}', messages 'true'"
    started = pgconn.exec_(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options})".encode())
    assert started.status == pq.ExecStatus.COPY_BOTH, started.error_message.decode()
    frames: list[bytes] = []
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        size, data = pgconn.get_copy_data(1)
        if size > 0:
            frames.append(bytes(data))
            if _is_end(frames[-1]):
                return frames[:-2]  # without the Begin of the transaction that ends the capture
        else:
            assert size == 0, "the server ended the stream"
            select.select([pgconn.socket], [], [], 1)
            pgconn.consume_input()
    raise TimeoutError(f"the stream did not end within {DEADLINE_S} s")


def _is_end(frame: bytes) -> bool:
    decoded = decode_frame(frame)
    if not isinstance(decoded, XLogData):
        return False
    message = decode_message(decoded.payload)
    return isinstance(message, LogicalMessage) and message.prefix == END


if __name__ == "__main__":
    recorded = capture(sys.argv[1], *read_script(), "golden,golden_insert_only")
    with connect(sys.argv[1]) as connection:
        version = connection.execute("SHOW server_version").fetchone()[0].split()[0]
    document = {"server_version": version, "frames": [frame.hex() for frame in recorded]}
    FRAMES.write_text(json.dumps(document, indent=0) + "\n")
