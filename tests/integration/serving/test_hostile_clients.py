"""Clients that want to do harm: they are refused or bounded, and others do not notice (I8)."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

import httpx2
import jwt
import orjson
import pytest

from tests.conftest import SOAK
from tests.integration.serving.conftest import (
    DEADLINE_S,
    ROOT,
    Lines,
    Server,
    StartServer,
    Storage,
    Streams,
    token_of,
)

UPDATES = 4000 if SOAK else 20
SUBSCRIPTIONS = [{"stream": "mine", "parameters": {"n": n}, "override_priority": None} for n in range(10_000)]

BODIES: dict[str, tuple[bytes, int, str]] = {
    "a body of ten megabytes": (b'{"x": "' + b"x" * 10_000_000 + b'"}', 413, "PSYNC_S2001"),
    "deeply nested lists": (b"[" * 200_000 + b"]" * 200_000, 400, "PSYNC_S2001"),
    "deeply nested objects": (b'{"streams":' * 20_000 + b"1" + b"}" * 20_000, 400, "PSYNC_S2001"),
    "invalid UTF-8": (b'{"client_id": "\xff\xfe"}', 400, "PSYNC_S2001"),
    "a lone surrogate": (b'{"client_id": "\\ud800"}', 400, "PSYNC_S2001"),
    "ten thousand subscriptions": (
        orjson.dumps({"streams": {"subscriptions": SUBSCRIPTIONS}}), 400, "PSYNC_S2001",
    ),
    "numbers beyond all bounds": (b'{"buckets": [{"name": "a", "after": 1e999}]}', 400, "PSYNC_S2001"),
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_bodies_that_are_meant_to_harm_are_refused(storage: Storage, server: Server, what: str):
    body, status, code = BODIES[what]
    headers = {"Authorization": f"Bearer {token_of('u1')}"}

    response = httpx2.post(server.url, content=body, headers=headers, timeout=DEADLINE_S)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def forged_tokens() -> Iterator[str]:
    """Tokens that nobody gave out."""
    good = token_of("u1")
    head, claims, signature = good.split(".")
    yield f"{head}.{claims}.{signature[:-4]}AAAA"
    yield f"{head}.{claims}."
    claimed = jwt.decode(good, options={"verify_signature": False})
    yield jwt.encode({"sub": "u1"}, "x" * 32)
    yield jwt.encode(claimed, None, algorithm="none")
    yield jwt.encode(claimed, "x" * 32, headers=jwt.get_unverified_header(good))
    yield "x" * 7000


def test_forged_tokens_are_refused_and_never_logged(storage: Storage, start_server: StartServer):
    server = start_server(fresh=True)
    tokens = [*forged_tokens()]

    for token in tokens:
        response = httpx2.post(server.url, json={}, headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE_S)
        assert response.status_code == 401

    log = server.log.read_text()
    assert not any(token in log for token in tokens)
    assert "Traceback" not in log


# Others, meanwhile.


def measure_delays(storage: Storage, lines: Lines, user: str) -> list[float]:
    """Seconds from a commit to its arrival, again and again."""
    delays = []
    for number in range(UPDATES):
        storage.publish(("mine", (user,), f"r{number}", {}))
        begin = time.monotonic()
        lines.through("checkpoint_complete")
        delays.append(time.monotonic() - begin)
    return sorted(delays)


@contextmanager
def attacked(server: Server) -> Iterator[dict[str, float]]:
    """Everything at once (attackers.py); afterwards the answer holds how many requests a second each attack made."""
    order = {
        "port": server.port,
        "tokens": {name: token_of(name) for name in ("greedy", "slow", "stormy", "garbage")},
        "forged": [*forged_tokens()],
        "deep": BODIES["deeply nested lists"][0].decode(),
    }
    rates: dict[str, float] = {}
    command = [sys.executable, "-m", "tests.integration.serving.attackers"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield rates
        process.stdin.close()
        rates |= json.loads(process.stdout.readline())


def test_others_are_served_while_everybody_misbehaves(storage: Storage, start_server: StartServer, streams: Streams):
    server, user = start_server(fresh=True), token_hex(4)
    storage.publish(*(("all", (), f"r{number}", {"text": "x" * 20_000}) for number in range(500)))
    lines = Lines(streams.open(server, user))
    lines.through("checkpoint_complete")
    quiet = measure_delays(storage, lines, user)
    memory = server.state()["memory_kib"]

    with attacked(server) as rates:
        delays = measure_delays(storage, lines, user)
        growth = server.state()["memory_kib"] - memory

    p99 = [sorted_delays[int(len(sorted_delays) * 0.99)] * 1000 for sorted_delays in (quiet, delays)]
    medians = [statistics.median(sorted_delays) * 1000 for sorted_delays in (quiet, delays)]
    print(f"quiet and attacked: median {medians[0]:.1f}, {medians[1]:.1f} ms; p99 {p99[0]:.1f}, {p99[1]:.1f} ms")
    print(f"memory grew by {growth / 1024:.0f} MB; requests a second: {rates}")
    assert delays[-1] < 2
    assert min(rates.values()) > 0
    assert growth < 100 << 10
    server.wait_for("streams", 1)
    assert "Traceback" not in server.log.read_text()
