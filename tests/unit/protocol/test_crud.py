"""Upload bodies and answers: what is read, what is refused and where, what identifies a transaction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.exceptions import ProtocolError, RequestError
from django_localsync.protocol import crud
from django_localsync.protocol.crud import (
    MAX_ID,
    CrudOperation,
    CrudTransaction,
    Op,
    OperationResult,
    Status,
    TransactionResult,
    UploadRequest,
    encode_answer,
    encode_result,
    encode_upload,
    parse_answer,
    parse_result,
    parse_upload,
)

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs/reference/upload.schema.json").read_text())
VECTORS = json.loads((ROOT / "tests/vectors/vectors.json").read_text())["groups"]["client_crud"]
ENTRIES = [json.loads(row["entry"]) for vector in VECTORS for row in vector["expected"]["ps_crud"]]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**63), MAX_ID) | st.floats(allow_nan=False, allow_infinity=False)
columns = st.dictionaries(texts, scalars | texts, max_size=4)


@st.composite
def operations(draw: st.DrawFn, op_id: int) -> CrudOperation:
    op = draw(st.sampled_from(Op))
    data = None if op is Op.DELETE else draw(columns)
    return CrudOperation(op_id, op, draw(texts), draw(texts), data, draw(st.none() | columns), draw(st.none() | texts))


@st.composite
def uploads(draw: st.DrawFn) -> UploadRequest:
    sizes = draw(st.lists(st.integers(1, 3), max_size=3))
    ids = sorted(draw(st.sets(st.integers(0, MAX_ID), min_size=len(sizes), max_size=len(sizes))))
    op_ids = iter(sorted(draw(st.sets(st.integers(0, MAX_ID), min_size=sum(sizes), max_size=sum(sizes)))))
    transactions = (
        CrudTransaction(id_, tuple(draw(operations(next(op_ids))) for _ in range(size)))
        for id_, size in zip(ids, sizes, strict=True)
    )
    client_id = draw(texts.filter(lambda text: text and "\0" not in text))
    return UploadRequest(client_id, tuple(transactions))


errors = st.none() | st.dictionaries(texts, st.lists(texts, max_size=2), max_size=2)
operation_results = st.builds(
    OperationResult, st.integers(0, MAX_ID), st.sampled_from(Status), st.none() | texts, errors
)
results = st.builds(
    TransactionResult,
    st.integers(0, MAX_ID),
    st.sampled_from(Status),
    st.lists(operation_results, min_size=1, max_size=3).map(tuple),
    st.booleans(),
)


def operation(**changes: Any) -> dict[str, Any]:
    return {"op_id": 1, "op": "PUT", "type": "todos", "id": "a", "data": {"title": "x"}} | changes


def body(*transactions: dict[str, Any], **changes: Any) -> bytes:
    document = {"client_id": "c", "transactions": list(transactions), **changes}
    return orjson.dumps(document)


def transaction(*operations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"id": 1, "operations": list(operations), **changes}


def refusal(text: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_upload(text)
    return caught.value


def schema_of(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})


@given(uploads())
def test_an_upload_survives_the_wire(upload: UploadRequest) -> None:
    assert parse_upload(encode_upload(upload)) == upload


@given(uploads())
def test_every_upload_fits_the_schema(upload: UploadRequest) -> None:
    schema_of("upload").validate(json.loads(encode_upload(upload)))


@given(st.lists(results, max_size=3).map(tuple))
def test_an_answer_survives_the_wire_and_fits_the_schema(answer: tuple[TransactionResult, ...]) -> None:
    encoded = encode_answer(answer)

    assert parse_answer(encoded) == answer
    schema_of("answer").validate(json.loads(encoded))


@given(results)
def test_a_result_survives_the_journal(result: TransactionResult) -> None:
    assert parse_result(encode_result(result)) == result


@given(st.binary(max_size=60) | st.recursive(scalars | texts, st.lists, max_leaves=5).map(orjson.dumps))
def test_anything_else_is_refused_as_a_bad_request(text: bytes) -> None:
    error = refusal(text)
    assert (error.status, error.code) == (400, "PSYNC_S2001")


@given(uploads(), st.data())
def test_one_wrong_member_is_refused_by_its_path_and_by_the_schema(upload: UploadRequest, data: st.DataObject) -> None:
    document = json.loads(encode_upload(upload))
    places = [((), "client_id", 1), ((), "transactions", {})]
    for index, item in enumerate(document["transactions"]):
        places += [(("transactions", index), "id", "1"), (("transactions", index), "operations", [])]
        for number in range(len(item["operations"])):
            path = ("transactions", index, "operations", number)
            places += [(path, name, []) for name in ("op_id", "op", "type", "id", "data", "old", "metadata")]
    path, name, value = data.draw(st.sampled_from(places))
    target: Any = document
    for step in path:
        target = target[step]
    target[name] = value

    details = refusal(orjson.dumps(document)).details or ""
    dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in (*path, name)).lstrip(".")

    assert details.startswith(f"{dotted}: ")
    assert not schema_of("upload").is_valid(document)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['op']}-{entry.get('data')}")
def test_entries_of_the_official_upload_queue_are_read(entry: dict[str, Any]) -> None:
    (read,) = parse_upload(body(transaction({"op_id": 7, "tx_id": 1, **entry}))).transactions[0].operations

    assert (read.op, read.type, read.id) == (entry["op"], entry["type"], entry["id"])
    assert read.data == (None if entry["op"] == "DELETE" else entry["data"])
    assert (read.old, read.metadata) == (entry.get("old"), entry.get("metadata"))


@pytest.mark.parametrize(
    ("text", "details"),
    [
        (b"", "line 1"),
        (b"{", "line 1"),
        (b"\xff\xfe", "UTF-8"),
        (b"[]", "body: must be an object"),
        (b"{}", "client_id: must be a text"),
        (body(client_id=""), "client_id: must not be empty"),
        (body(client_id="a\0b"), "client_id: must not be empty or hold a NUL"),
        (body(client_id="c" * 201), "client_id: must have at most 200"),
        (body(transactions=None), "transactions: must be a list"),
        (body(transaction()), "transactions[0].operations: must not be empty"),
        (body(transaction(operation(), id=True)), "transactions[0].id: must be a whole number"),
        (body(transaction(operation(), id=-1)), "transactions[0].id: must be a whole number"),
        (body(transaction(operation(), id=2**63)), "transactions[0].id: must be a whole number"),
        (body(transaction(operation(op_id=1.0))), "transactions[0].operations[0].op_id: must be a whole number"),
        (body(transaction(operation(op="put"))), "transactions[0].operations[0].op: must be PUT, PATCH or DELETE"),
        (body(transaction(operation(type=None))), "transactions[0].operations[0].type: must be a text"),
        (body(transaction(operation(id=7))), "transactions[0].operations[0].id: must be a text"),
        (body(transaction(operation()), version=2), "version: must be 1"),
        (body(transaction(operation(op="DELETE"))), "transactions[0].operations[0].data: a DELETE has no data"),
        (
            body(transaction(operation(data={"tags": ["a"]}))),
            "transactions[0].operations[0].data.tags: must be a text, a number",
        ),
        (body(transaction(operation(op_id=2), operation(op_id=2))), "operations: op_id 2 after 2"),
        (body(transaction(operation(op_id=3), operation(op_id=2))), "operations: op_id 2 after 3"),
        (
            body(transaction(operation(op_id=3)), transaction(operation(op_id=2), id=2)),
            "operations: op_id 2 after 3",
        ),
        (
            body(transaction(operation(op_id=1)), transaction(operation(op_id=2))),
            "transactions: id 1 after 1",
        ),
        (
            body(transaction(operation(op_id=1), id=5), transaction(operation(op_id=2), id=4)),
            "transactions: id 4 after 5",
        ),
    ],
)
def test_a_bad_body_is_refused_with_its_place_and_problem(text: bytes, details: str) -> None:
    error = refusal(text)

    assert (error.status, error.code) == (400, "PSYNC_S2001")
    assert details in (error.details or "")


def test_too_many_operations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crud, "MAX_OPERATIONS", 1)

    error = refusal(body(transaction(operation(op_id=1), operation(op_id=2))))

    assert error.details == "transactions: hold 2 operations; send at most 1 at a time"


def test_members_that_mean_nothing_are_ignored() -> None:
    read = parse_upload(body(transaction(operation(tx_id=4), more=[1]), version=1))

    assert read.transactions[0].operations == (CrudOperation(1, Op.PUT, "todos", "a", {"title": "x"}),)


def test_a_put_without_data_sets_nothing() -> None:
    read = parse_upload(body(transaction(operation(data=None))))

    assert read.transactions[0].operations[0].data == {}


ORIGINAL = CrudOperation(1, Op.PATCH, "todos", "a", {"title": "x", "done": 1}, {"title": "w"}, "note")


@pytest.mark.parametrize(
    "change",
    [
        {"op_id": 2},
        {"op": Op.PUT},
        {"type": "lists"},
        {"id": "b"},
        {"data": {"title": "x"}},
        {"data": {"title": "x", "done": True}},
        {"data": {"title": "x", "done": "1"}},
        {"data": {"title": "x", "done": None}},
        {"old": None},
        {"old": {"title": "v"}},
        {"metadata": None},
    ],
    ids=str,
)
def test_other_content_has_another_hash(change: dict[str, Any]) -> None:
    changed = replace(ORIGINAL, **change)

    assert CrudTransaction(1, (changed,)).content_hash != CrudTransaction(1, (ORIGINAL,)).content_hash


def test_the_order_of_operations_is_content() -> None:
    first, second = replace(ORIGINAL, id="b"), replace(ORIGINAL, id="c")

    assert CrudTransaction(1, (first, second)).content_hash != CrudTransaction(1, (second, first)).content_hash


def test_the_hash_knows_neither_the_order_of_columns_nor_the_transaction_id() -> None:
    same = replace(ORIGINAL, data={"done": 1, "title": "x"})

    assert CrudTransaction(9, (same,)).content_hash == CrudTransaction(1, (ORIGINAL,)).content_hash


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"data":{}}', b'{"data":{"transactions":[{"id":1}]}}'])
def test_a_bad_answer_is_a_broken_protocol(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_answer(text)


def test_an_answer_leaves_out_what_is_absent() -> None:
    result = TransactionResult(4, Status.REJECTED, (OperationResult(9, Status.REJECTED, "invalid", {"a": ["b"]}),))

    assert json.loads(encode_answer([result])) == {
        "data": {
            "transactions": [
                {
                    "id": 4,
                    "status": "rejected",
                    "operations": [{"op_id": 9, "status": "rejected", "code": "invalid", "errors": {"a": ["b"]}}],
                }
            ]
        }
    }
