"""Bad input, sent to running processes: a clear error with its code, never a traceback, nothing lost, all goes on."""

from __future__ import annotations

import json
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import httpx2
import jwt
import pytest

from tests.e2e.project import Person, RunningProject, open_database
from tests.e2e.wire import data_rows, headers, http, open_stream, read_checkpoint
from tests.processes import project_environment, replicator, replicator_process, running, wait_until

OTHER_KEY = "a key of somebody else, which has thirty-two bytes and more"
MAX_OP_ID = 2**63 - 1


@pytest.fixture(scope="module")
def alice(project: RunningProject) -> Person:
    """A user with a list of one to-do."""
    person = project.add_person("alice")
    project.add_todo(project.add_list("Household", person), "Buy bread")
    return person


@pytest.fixture(autouse=True)
def _the_service_still_works(project: RunningProject, alice: Person) -> Iterator[None]:
    """After every test: streams, uploads and receipts work, the log shows neither tracebacks nor tokens."""
    yield
    token = alice.token()
    [(list_id,)] = project.rows("SELECT id FROM lists WHERE owner_id = %(user)s LIMIT 1", user=alice.id)
    todo_id = str(uuid.uuid4())
    assert upload(project, token, put_todo(todo_id, list=str(list_id)))["status"] == "applied"
    receipt = http.get(f"{project.endpoint}/write-checkpoint2.json?client_id=after", headers=headers(token))
    number = receipt.json()["data"]["write_checkpoint"]
    with open_stream(project.endpoint, token, {"client_id": "after", "raw_data": True}) as stream:
        stream.read_until(b'"write_checkpoint":"%s"' % number.encode())
    assert ("todos", todo_id) in data_rows(read_checkpoint(project.endpoint, token))
    for process in (project.server, project.replicator):
        process.check()
        assert "Traceback" not in process.log
        assert "eyJ" not in process.log, "a token is in the log"  # how the base64 of {" begins


# --- tokens ---


def forge(person: Person, *, key: str = OTHER_KEY, algorithm: str = "HS256", **changes: Any) -> str:
    """A token like the person's own, with changed claims, signed by another key under the same `kid`."""
    own = person.token()
    header, claims = jwt.get_unverified_header(own), jwt.decode(own, options={"verify_signature": False})
    return jwt.encode(claims | changes, key, algorithm=algorithm, headers={"kid": header["kid"]})


def unsigned(person: Person) -> str:
    """The person's claims under the algorithm `none`, which has no signature."""
    _, claims, _ = person.token().split(".")
    return f"{urlsafe_b64encode(json.dumps({'alg': 'none', 'typ': 'JWT'}).encode()).decode().rstrip('=')}.{claims}."


def altered(person: Person) -> str:
    """A token whose claims were changed after it was signed."""
    header, _, signature = person.token().split(".")
    now = int(time.time())
    claims = {"sub": str(person.id + 1), "aud": "localsync", "iat": now, "exp": now + 60}
    return f"{header}.{urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.{signature}"


AUTHORIZATIONS: dict[str, tuple[str, Callable[[Person], str | None]]] = {
    "absent": ("PSYNC_S2106", lambda person: None),
    "empty": ("PSYNC_S2106", lambda person: ""),
    "another scheme": ("PSYNC_S2101", lambda person: f"Basic {person.token()}"),
    "no scheme": ("PSYNC_S2101", lambda person: person.token()),
    "two spaces": ("PSYNC_S2101", lambda person: f"Bearer  {person.token()}"),
    "not a token": ("PSYNC_S2101", lambda person: "Bearer abc"),
    "a part of one": ("PSYNC_S2101", lambda person: f"Bearer {person.token()[:-10]}"),
    "expired": ("PSYNC_S2103", lambda person: f"Bearer {person.token(lifetime_s=-61)}"),
    "for too long": ("PSYNC_S2104", lambda person: f"Bearer {person.token(lifetime_s=86_401)}"),
    "algorithm none": ("PSYNC_S2101", lambda person: f"Bearer {unsigned(person)}"),
    "another algorithm": ("PSYNC_S2101", lambda person: f"Bearer {forge(person, algorithm='HS512')}"),
    "another's key": ("PSYNC_S2101", lambda person: f"Bearer {forge(person)}"),
    "altered": ("PSYNC_S2101", lambda person: f"Bearer {altered(person)}"),
    "of 100 kB": ("PSYNC_S2101", lambda person: f"Bearer {'e' * 50_000}.{'e' * 50_000}.e"),
}


@pytest.mark.parametrize("what", AUTHORIZATIONS)
@pytest.mark.parametrize("path", ["sync/stream", "upload", "write-checkpoint2.json"])
def test_a_bad_token_is_refused_everywhere(project: RunningProject, alice: Person, path: str, what: str) -> None:
    code, make_authorization = AUTHORIZATIONS[what]
    authorization = make_authorization(alice)
    sent = {} if authorization is None else {"Authorization": authorization}
    method = "GET" if path.endswith(".json") else "POST"
    response = http.request(method, f"{project.endpoint}/{path}", headers=sent, json=None if method == "GET" else {})
    if what == "of 100 kB" and response.status_code in (400, 431):
        return  # the server itself refuses so long a header
    assert_refused(response, 401, code)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert not authorization or authorization.split()[-1] not in response.text


def test_a_user_who_was_deactivated_writes_nothing(project: RunningProject) -> None:
    mallory = project.add_person("mallory")
    list_id = project.add_list("Hers", mallory)
    project.rows("UPDATE auth_user SET is_active = false WHERE id = %(id)s", id=mallory.id)
    response = post_upload(project, mallory.token(), put_todo(str(uuid.uuid4()), list=list_id))
    assert_refused(response, 401, "PSYNC_S2101")
    assert project.rows("SELECT 1 FROM todos WHERE list_id = %(list)s", list=list_id) == []


def test_tokens_are_only_for_those_who_are_logged_in(project: RunningProject) -> None:
    response = http.post(f"{project.endpoint}/token")
    assert response.status_code in (401, 403)
    assert response.json()["error"]["code"].startswith("PSYNC_S2")
    assert "Access-Control-Allow-Origin" not in response.headers


# --- stream requests ---


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "the body"),
        (b'"text"', "the body"),
        (b'{"buckets": {}}', "buckets"),
        (b'{"buckets": [7]}', "buckets[0]"),
        (b'{"buckets": [{"name": 7, "after": "0"}]}', "buckets[0].name"),
        (b'{"buckets": [{"name": "a", "after": "-1"}]}', "buckets[0].after"),
        (b'{"buckets": [{"name": "a", "after": "1e3"}]}', "buckets[0].after"),
        (b'{"buckets": [{"name": "a", "after": 1.5}]}', "buckets[0].after"),
        (b'{"buckets": [{"name": "a", "after": "\xd9\xa1"}]}', "buckets[0].after"),
        (b'{"buckets": [{"name": "a", "after": "9223372036854775808"}]}', "buckets[0].after"),
        (b'{"buckets": [{"name": "a", "after": "%s"}]}' % (b"9" * 5000), "buckets[0].after"),
        (b'{"client_id": 7}', "client_id"),
        (b'{"client_id": "\\u0000"}', "client_id"),
        (b'{"client_id": "%s"}' % (b"x" * 201), "client_id"),
        (b'{"parameters": []}', "parameters"),
        (b'{"raw_data": "yes"}', "raw_data"),
        (b'{"streams": {"subscriptions": [{"stream": null}]}}', "streams.subscriptions[0].stream"),
        (b'{"streams": {"subscriptions": [{"stream": "a", "override_priority": -1}]}}', "override_priority"),
        (b'{"streams": {"subscriptions": %s}}' % json.dumps([{"stream": "a"}] * 1001).encode(), "subscriptions"),
    ],
    ids=lambda value: value[:48].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_a_stream_request_that_is_wrong_is_told_where(
    project: RunningProject, alice: Person, body: bytes, place: str
) -> None:
    response = post(project, "sync/stream", alice.token(), body)
    error = assert_refused(response, 400, "PSYNC_S2001")
    assert place in error["details"]


def test_a_stream_request_has_a_largest_size(project: RunningProject, alice: Person) -> None:
    response = post(project, "sync/stream", alice.token(), b'{"app_metadata": "%s"}' % (b"x" * (4 << 20)))
    assert_refused(response, 413, "PSYNC_S2001")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_stream_takes_post_only(project: RunningProject, alice: Person, method: str) -> None:
    response = http.request(method, f"{project.endpoint}/sync/stream", headers=headers(alice.token()))
    assert_refused(response, 405)


def test_unknown_paths_are_not_found(project: RunningProject, alice: Person) -> None:
    assert_refused(post(project, "sync/streams", alice.token(), b"{}"), 404, "PSYNC_S2002")


@pytest.mark.parametrize("after", ["0", "1", str(MAX_OP_ID)])
def test_who_asks_for_anothers_bucket_gets_nothing_of_it(project: RunningProject, alice: Person, after: str) -> None:
    stranger = project.add_person("stranger")
    token = alice.token()
    theirs = [bucket["bucket"] for bucket in read_checkpoint(project.endpoint, token)[0]["checkpoint"]["buckets"]]
    assert theirs
    asked = [{"name": name, "after": after} for name in [*theirs, "nonsense", "0.0#[]", "'; DROP TABLE todos; --"]]
    lines = read_checkpoint(project.endpoint, stranger.token(), {"buckets": asked, "raw_data": True})
    given = [bucket["bucket"] for bucket in lines[0]["checkpoint"]["buckets"]]
    assert set(given).isdisjoint(theirs)
    assert [line for line in lines if "data" in line] == []


def test_a_position_that_never_was_gets_the_bucket_from_its_beginning(project: RunningProject, alice: Person) -> None:
    token = alice.token()
    whole = read_checkpoint(project.endpoint, token)
    buckets = whole[0]["checkpoint"]["buckets"]
    asked = [{"name": bucket["bucket"], "after": str(MAX_OP_ID)} for bucket in buckets]
    lines = read_checkpoint(project.endpoint, token, {"buckets": asked, "raw_data": True})
    assert data_rows(lines) == data_rows(whole) != {}
    assert buckets == [bucket for line in lines for bucket in announced(line)]


def test_subscriptions_to_streams_that_do_not_exist_are_left_out(project: RunningProject, alice: Person) -> None:
    request = {
        "raw_data": True,
        "streams": {"include_defaults": False, "subscriptions": [{"stream": "nonsense", "parameters": {"a": [1]}}]},
    }
    checkpoint = read_checkpoint(project.endpoint, alice.token(), request)[0]["checkpoint"]
    assert (checkpoint["buckets"], checkpoint["streams"]) == ([], [])


def test_a_client_that_leaves_in_the_middle_of_its_request_disturbs_nobody(
    project: RunningProject, alice: Person
) -> None:
    with open_stream(project.endpoint, alice.token()) as first:
        first.read_until(b"checkpoint_complete")
        for size in (10, 60, 200):
            head = f"POST /localsync/sync/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token()}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            with open_stream(project.endpoint, "unused") as other:
                other.connection.sendall(head.encode()[:size])
        project.add_todo(project.add_list("Another", alice), "Seen by the first")
        first.read_until(b"Seen by the first")


# --- uploads ---


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "empty"),
        (b"{", "end of data"),
        (b"[" * 100_000, "depth"),
        (b"[]", "object"),
        (b"{}", "client_id"),
        (b'{"client_id": "a"}', "transactions"),
        (b'{"client_id": "a", "transactions": [{"id": 1}]}', "transactions[0].operations"),
        (b'{"client_id": "a", "transactions": [{"id": 1, "operations": []}]}', "transactions[0].operations"),
        (
            b'{"client_id": "a", "transactions": [{"id": -1, "operations":'
            b' [{"op_id": 1, "op": "DELETE", "type": "todos", "id": "x"}]}]}',
            "transactions[0].id",
        ),
        (
            b'{"client_id": "a", "transactions": [{"id": 1, "operations":'
            b' [{"op_id": 1, "op": "DROP", "type": "todos", "id": "x"}]}]}',
            "transactions[0].operations[0].op",
        ),
    ],
    ids=lambda value: value[-48:].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_an_upload_that_is_wrong_is_told_where(project: RunningProject, alice: Person, body: bytes, place: str) -> None:
    error = assert_refused(post(project, "upload", alice.token(), body), 400, "PSYNC_S2001")
    assert place in error["details"]


def test_an_upload_has_a_largest_size(project: RunningProject, alice: Person) -> None:
    body = b'{"client_id": "a", "transactions": [], "x": "%s"}' % (b"x" * (16 << 20))
    assert_refused(post(project, "upload", alice.token(), body), 413, "PSYNC_S2001")


def test_an_upload_says_that_it_is_json(project: RunningProject, alice: Person) -> None:
    sent = headers(alice.token()) | {"Content-Type": "text/plain"}
    response = http.post(f"{project.endpoint}/upload", content=b"{}", headers=sent)
    assert_refused(response, 415, "PSYNC_S2004")


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ({"op": "PUT", "type": "nonsense", "data": {"a": 1}}, "unknown_table"),
        ({"op": "PATCH", "type": "auth_user", "data": {"is_superuser": 1}}, "unknown_table"),
        ({"op": "PUT", "type": "localsync_bucket", "data": {}}, "unknown_table"),
        ({"op": "PUT", "type": "todos; DROP TABLE todos", "data": {}}, "unknown_table"),
        ({"op": "PUT", "type": "todos", "data": {"list_id": "LIST", "titel": "x"}}, "unknown_column"),
        (
            {"op": "PUT", "type": "todos", "data": {"list_id": "LIST", "title": "x", "created_by_id": 1}},
            "unknown_column",
        ),
        ({"op": "PUT", "type": "todos", "data": {"list_id": "LIST", "title": "x" * 201}}, "invalid"),
        ({"op": "PUT", "type": "todos", "data": {"list_id": "no uuid", "title": "x"}}, "invalid"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_write_that_cannot_be_is_answered_and_the_rest_of_the_queue_is_applied(
    project: RunningProject, alice: Person, operation: dict[str, Any], code: str
) -> None:
    list_id = project.add_list("For uploads", alice)
    text = json.dumps({"id": str(uuid.uuid4()), **operation}).replace("LIST", list_id)
    good = put_todo(str(uuid.uuid4()), list=list_id)
    answer = post_upload(project, alice.token(), json.loads(text), good).json()["data"]["transactions"]
    assert [result["status"] for result in answer] == ["rejected", "applied"]
    assert answer[0]["operations"][0]["code"] == code
    assert project.rows("SELECT id::text FROM todos WHERE list_id = %(list)s", list=list_id) == [(good["id"],)]


@pytest.mark.parametrize("client_id", ["%00", "x" * 201])
def test_a_receipt_is_for_a_client_that_can_be(project: RunningProject, alice: Person, client_id: str) -> None:
    address = f"{project.endpoint}/write-checkpoint2.json?client_id={client_id}"
    assert_refused(http.get(address, headers=headers(alice.token())), 400, "PSYNC_S2001")


# --- rules ---

WRONG_RULES = {
    "a missing column": ("SELECT id, titel FROM todos", "titel"),
    "a missing table": ("SELECT id FROM todoes", "todoes"),
    "broken SQL": ("SELECT id FROM", "'shared' line 5"),
}


@pytest.mark.parametrize("what", WRONG_RULES)
def test_check_names_what_is_wrong_in_the_rules(project: RunningProject, tmp_path: Path, what: str) -> None:
    query, named = WRONG_RULES[what]
    environment = project_environment(project.url, with_rules(tmp_path, query))
    command = (sys.executable, "manage.py", "check", "--database", "default")
    with running("check", *command, environment=environment) as process:
        assert process.wait(15) == 1
        assert named in process.log
        assert "Traceback" not in process.log


def test_a_replicator_says_what_the_rules_name_in_vain_and_replicates_the_rest(
    fresh_database: str, tmp_path: Path
) -> None:
    rules = with_rules(tmp_path, "SELECT id, title, titel FROM todos WHERE list_id IN (SELECT id FROM lists)")
    with replicator(fresh_database, environment=rules) as process, open_database(fresh_database) as database:
        assert "public.todos has no column 'titel'" in process.log
        database.add_todo(database.add_list("Household", database.add_person("alice")), "Buy bread")
        count: LiteralString = "SELECT count(*) FROM localsync_bucket_operation WHERE row_type = 'todos'"
        wait_until(lambda: database.rows(count) == [(1,)], "the to-do is replicated", check=process.check)
        assert "Traceback" not in process.log


def test_a_replicator_does_not_start_with_rules_that_do_not_compile(fresh_database: str, tmp_path: Path) -> None:
    with replicator_process(fresh_database, environment=with_rules(tmp_path, "SELECT id FROM")) as process:
        assert process.wait(15) == 1
        assert "'shared' line 5" in process.log
        assert "Traceback" not in process.log


# --- helpers ---


def with_rules(folder: Path, query: str) -> dict[str, str]:
    """The environment of processes whose rules are one stream of one query."""
    rules = folder / "rules.yaml"
    rules.write_text(f"config: {{edition: 3}}\nstreams:\n  shared:\n    auto_subscribe: true\n    query: {query}\n")
    return {"DJANGO_SETTINGS_MODULE": "tests.e2e.settings_with_rules", "RULES": str(rules)}


def announced(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The buckets of a checkpoint, or of a diff."""
    buckets: list[dict[str, Any]] = line.get("checkpoint", line.get("checkpoint_diff", {})).get("buckets", [])
    return buckets or line.get("checkpoint_diff", {}).get("updated_buckets", [])


def post(project: RunningProject, path: str, token: str, body: bytes) -> httpx2.Response:
    sent = headers(token) | {"Content-Type": "application/json"}
    return http.post(f"{project.endpoint}/{path}", content=body, headers=sent)


def put_todo(todo_id: str, *, list: str) -> dict[str, Any]:
    return {"op": "PUT", "type": "todos", "id": todo_id, "data": {"list_id": list, "title": "Good", "done": 0}}


def post_upload(project: RunningProject, token: str, *operations: dict[str, Any]) -> httpx2.Response:
    """Upload operations, each a local transaction of its own."""
    transactions = [
        {"id": index, "operations": [{"op_id": index, **operation}]} for index, operation in enumerate(operations, 1)
    ]
    body = {"client_id": uuid.uuid4().hex, "transactions": transactions}
    return post(project, "upload", token, json.dumps(body).encode())


def upload(project: RunningProject, token: str, operation: dict[str, Any]) -> dict[str, Any]:
    """What became of one operation."""
    response = post_upload(project, token, operation)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()["data"]["transactions"][0]
    return answer


def assert_refused(response: httpx2.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of an answer that refuses in the protocol's own form."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert (error["status"], error["code"] if code is None else code) == (status, error["code"])
    assert error["description"]
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    return error
