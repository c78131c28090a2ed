"""Random histories: the client never loses sight of its own write, publishes only what the server had, converges.

And faults put in on purpose: each must be noticed by the same histories, or they would prove nothing.
"""

import itertools
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import Phase, example, given, settings

from django_localsync.client import bucket_storage, engine, upload_queue
from django_localsync.client.store import Store
from tests.unit.client import model
from tests.unit.client.model import SCHEMA, World, steps


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    memory = Path("/dev/shm")  # thousands of small commits: a disk would cost ten times as much
    folder = Path(tempfile.mkdtemp(dir=memory)) if memory.is_dir() else tmp_path_factory.mktemp("clients")
    numbers = itertools.count()
    yield lambda: folder / f"{next(numbers)}.db"
    shutil.rmtree(folder)


def play(path, script):
    store = Store(path, SCHEMA)
    try:
        World(store).play(script)
    finally:
        store.close()
        path.unlink()


# Histories that chance makes too seldom, as steps of the model.
SECOND_WRITE_WHILE_A_RECEIPT_IS_ASKED_FOR = [
    ("local_write", "x", "p"),
    ("upload_all",),
    ("ask_receipt",),
    ("local_write", "y", "q"),
    ("take_receipt",),
    ("replicate", 1),
    ("upload_all",),
    ("checkpoint", 3),
    ("deliver", 100),
]


@given(script=steps)
@example(script=SECOND_WRITE_WHILE_A_RECEIPT_IS_ASKED_FOR)
def test_a_client_keeps_its_own_writes_and_converges(files, script):
    play(files(), script)


def replaced(module, name, old, new):
    """A fault in a text of SQL."""
    text = getattr(module, name)
    assert old in text
    return patch.object(module, name, text.replace(old, new))


def without_effect(module, name, result=None):
    """A function that does nothing."""
    return patch.object(module, name, lambda *_, **__: result)


def gate_with(**fixed):
    """A gate that does not look at something."""
    honest = engine.may_publish
    return patch.object(bucket_storage, "may_publish", lambda **facts: honest(**{**facts, **fixed}))


def set_gate_always(connection, write_checkpoint, _sequence):
    bucket_storage.set_value(connection, upload_queue.GATE_KEY, write_checkpoint)
    return True


def forget_only_operations(connection, which, bindings):
    connection.execute(f"DELETE FROM ps_oplog WHERE {which}", bindings)


FAULTS = {
    "a REMOVE is dropped": lambda: replaced(bucket_storage, "_FIND_LINE_ROWS", "IN ('PUT', 'REMOVE')", "= 'PUT'"),
    "a removed row is not looked at again": lambda: replaced(
        bucket_storage, "_FIND_SUPERSEDED", "old.row_id, new.op", "old.row_id, 'PUT'"
    ),
    "checksums are not checked": lambda: without_effect(bucket_storage, "_failed_buckets", ()),
    "failing buckets are kept": lambda: without_effect(bucket_storage, "remove_buckets"),
    "revoked buckets are kept": lambda: without_effect(bucket_storage, "keep_only_buckets"),
    "rows of a deleted bucket are not looked at again": lambda: patch.object(
        bucket_storage, "_forget_rows", forget_only_operations
    ),
    "a CLEAR is ignored": lambda: without_effect(bucket_storage, "_clear_bucket"),
    "the oldest version wins": lambda: replaced(
        bucket_storage, "_FIND_CHANGED", "ORDER BY op_id DESC", "ORDER BY op_id"
    ),
    "only the first of a row's operations in a line counts": lambda: replaced(
        bucket_storage, "_FIND_LINE_ROWS", "max(position)", "min(position)"
    ),
    "a replaced PUT's checksum is not taken out": lambda: replaced(bucket_storage, "_ADD_TO_BUCKET", "+ :added", "+ 0"),
    "the gate is ignored": lambda: patch.object(bucket_storage, "may_publish", lambda **_: True),
    "the write checkpoint is ignored": lambda: gate_with(gate=None),
    "any write checkpoint will do": lambda: gate_with(seen=2**62),
    "writes after the request for a receipt are ignored": lambda: patch.object(model, "set_gate", set_gate_always),
    "a local write is not compared with the server's row": lambda: replaced(
        bucket_storage, "_FIND_CHANGED", "FROM ps_updated_rows", "FROM ps_updated_rows WHERE false"
    ),
    "a diff forgets the buckets it does not name": lambda: patch.object(
        engine.Target, "through", lambda target, _: list(target.buckets.values())[:1]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_noticed(files, fault):
    @settings(max_examples=400, database=None, phases=[Phase.explicit, Phase.generate], deadline=None, derandomize=True)
    @given(script=steps)
    @example(script=SECOND_WRITE_WHILE_A_RECEIPT_IS_ASKED_FOR)
    def histories(script):
        play(files(), script)

    with ExitStack() as stack:
        stack.enter_context(FAULTS[fault]())
        with pytest.raises(AssertionError):
            histories()
