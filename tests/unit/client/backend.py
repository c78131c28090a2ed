"""A tiny real backend for driver tests: a few rows in memory, served over loopback HTTP by asyncio alone.

It keeps one bucket of operations and one counter of write checkpoints, and misbehaves on request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from urllib.parse import parse_qs, urlsplit

import orjson

from django_localsync.buckets.checksum import add_checksums, put_checksum, remove_checksum
from django_localsync.buckets.operation import OpKind
from django_localsync.protocol.lines import (
    BucketChecksum,
    Checkpoint,
    CheckpointComplete,
    StreamInfo,
    TokenExpiresIn,
    encode_bucket_data,
    encode_checkpoint,
    encode_checkpoint_complete,
    encode_token_expires_in,
)

BUCKET = '1.1#todos|0["u1"]'


class Backend:
    """Rows of one table `todos`, and everything a client asked for."""

    def __init__(self):
        self.rows = {}
        self.operations = []
        self.write_checkpoint = None
        self.requests = []  # bodies of stream requests
        self.uploads = []  # bodies of uploads
        self.tokens_seen = []
        self.good_tokens = None  # None: all are good
        self.cut_after_bytes = deque()  # for the next streams: cut after so many bytes of data
        self.wrong_checksums = 0  # so many checkpoints lie
        self.first_lines = deque()  # for the next streams: a line to begin with
        self.upload_statuses = deque()  # statuses to answer uploads with, instead of taking them
        self.reject = lambda operation: False
        self.pace = 0.0
        self._changed = None
        self._loop = asyncio.new_event_loop()
        self._server = None
        self._connections = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _start(self):
        self._changed = asyncio.Condition()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/localsync"

    async def _stop(self):
        self._server.close()
        await self._drop()

    async def _drop(self):
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def put(self, row_id, **values):
        """Change a row, as somebody else would."""
        self._do(lambda: self._put(row_id, values))

    def put_many(self, rows):
        self._do(lambda: [self._put(row_id, values) for row_id, values in rows])

    def remove(self, row_id):
        self._do(lambda: self._remove(row_id))

    def drop_connections(self):
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(5)

    def _do(self, change):
        async def run():
            change()
            await self._announce()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(5)

    async def _announce(self):
        async with self._changed:
            self._changed.notify_all()

    def _put(self, row_id, values):
        self.rows[row_id] = values
        data = orjson.dumps({"id": row_id, **values}).decode()
        self._append(OpKind.PUT, put_checksum("todos", row_id, data), row_id, data)

    def _remove(self, row_id):
        if self.rows.pop(row_id, None) is not None:
            self._append(OpKind.REMOVE, remove_checksum("todos", row_id, f"1/{row_id}"), row_id, None)

    def _append(self, kind, checksum, row_id, data):
        op_id = len(self.operations) + 1
        self.operations.append((op_id, kind.value, checksum, "todos", row_id, f"1/{row_id}", data))

    # HTTP

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            while head := await self._read_head(reader):
                method, target, headers = head
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(writer, method, target, headers, body):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _read_head(self, reader):
        try:
            text = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        first, *lines = text.strip().split("\r\n")
        method, target, _ = first.split(" ")
        return method, urlsplit(target), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}

    async def _answer(self, writer, method, target, headers, body):
        token = headers["authorization"].removeprefix("Token ")
        self.tokens_seen.append(token)
        if self.good_tokens is not None and token not in self.good_tokens:
            error = {"error": {"code": "PSYNC_S2103", "status": 401, "description": "the token has expired"}}
            return await self._send(writer, 401, error)
        match method, target.path.removeprefix("/localsync"):
            case "POST", "/sync/stream":
                self.requests.append(orjson.loads(body))
                await self._stream(writer, orjson.loads(body))
                return False
            case "GET", "/write-checkpoint2.json":
                assert parse_qs(target.query)["client_id"]
                self.write_checkpoint = (self.write_checkpoint or 0) + 1
                await self._announce()
                return await self._send(writer, 200, {"data": {"write_checkpoint": str(self.write_checkpoint)}})
            case "POST", "/upload":
                return await self._take_upload(writer, orjson.loads(body))
        return await self._send(writer, 404, {"error": {"description": "no such path"}})

    async def _send(self, writer, status, document):
        body = orjson.dumps(document)
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        return True

    async def _take_upload(self, writer, body):
        if self.upload_statuses:
            return await self._send(writer, self.upload_statuses.popleft(), {"error": {"description": "not now"}})
        self.uploads.append(body)
        results = [self._apply(transaction) for transaction in body["transactions"]]
        await self._announce()
        return await self._send(writer, 200, {"data": {"transactions": results}})

    def _apply(self, transaction):
        operations = transaction["operations"]
        status = "rejected" if any(map(self.reject, operations)) else "applied"
        for operation in operations if status == "applied" else ():
            if operation["op"] == "DELETE":
                self._remove(operation["id"])
            else:
                self._put(operation["id"], {**self.rows.get(operation["id"], {}), **operation["data"]})
        each = {"status": status} | ({"code": "invalid", "errors": {"title": ["bad"]}} if status == "rejected" else {})
        return {
            "id": transaction["id"],
            "status": status,
            "operations": [{"op_id": operation["op_id"], **each} for operation in operations],
        }

    async def _stream(self, writer, request):
        self._left = self.cut_after_bytes.popleft() if self.cut_after_bytes else None
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        if self.first_lines:
            await self._chunk(writer, self.first_lines.popleft())
        sent = next((int(b["after"]) for b in request["buckets"] if b["name"] == BUCKET), 0)
        shown = None
        while True:
            state = (len(self.operations), self.write_checkpoint)
            if state != shown:
                shown = state
                await self._checkpoint(writer, sent, *state)
                sent = state[0]
            async with self._changed:
                if (len(self.operations), self.write_checkpoint) == shown:
                    await self._changed.wait()

    async def _checkpoint(self, writer, sent, last, write_checkpoint):
        checksum = add_checksums(operation[2] for operation in self.operations[:last])
        if self.wrong_checksums:
            self.wrong_checksums -= 1
            checksum = (checksum + 1) % 2**32
        streams = (StreamInfo("todos", is_default=True),)
        bucket = BucketChecksum(BUCKET, checksum, last, subscriptions=(("default", 0),))
        await self._chunk(writer, encode_checkpoint(Checkpoint(last, (bucket,), write_checkpoint, streams)))
        for start in range(sent, last, 1000):
            page = self.operations[start : min(start + 1000, last)]
            await self._chunk(writer, encode_bucket_data(BUCKET, start, page, has_more=start + 1000 < last))
        await self._chunk(writer, encode_checkpoint_complete(CheckpointComplete(last)))

    async def _chunk(self, writer, data):
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        writer.write(b"%x\r\n%b\r\n" % (len(data), data) if data else b"")
        await writer.drain()
        if self._left == 0:
            raise ConnectionError("cut on request")


def keepalive(seconds):
    return encode_token_expires_in(TokenExpiresIn(seconds))
