"""Values by the type of their column, both ways: what sync brings to a device is what an upload may bring back."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import orjson
import pytest
from django.contrib.auth.models import User
from django.db import connection
from rest_framework.permissions import AllowAny

from django_localsync.pgoutput.types import PgType, TypeKind
from django_localsync.pgoutput.values import ValueOptions, converter, value_json
from tests.integration.uploads.operations import codes, handler_of, patch, put, send, table
from tests.testapp.models import Specimen

FIELDS = [field.name for field in Specimen._meta.fields if not field.primary_key]
HANDLER = handler_of(specimens=table(queryset=Specimen.objects.all(), fields=FIELDS, permission_classes=[AllowAny]))
MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 123456, dt.UTC)
FULL: dict[str, Any] = {
    "flag": True,
    "small": -(2**15),
    "big": 2**63 - 1,
    "real": 0.1,
    "amount": Decimal("12345678.500000"),
    "day": dt.date(2024, 2, 29),
    "moment": MOMENT,
    "hour": dt.time(23, 59, 59, 999999),
    "span": dt.timedelta(days=3, hours=4, microseconds=5),
    "token": uuid.UUID(int=7),
    "address": "2001:db8::1",
    "text": "naïve ✓ \U0001f600 'quoted' \"twice\" \\ \n\tend",
    "blob": bytes(range(256)),
    "document": {"a": [1, 2.5, None, True, {"ü": "✓"}], "n": 123456789012345678},
    "texts": ["a", "", "NULL", 'x"y', "{}"],
    "numbers": [1, -2],
    "amounts": [Decimal("1.50"), Decimal("2.00")],
    "days": [dt.date(1999, 12, 31)],
    "moments": [MOMENT, MOMENT.replace(microsecond=0)],
    "flags": [True, False],
}
EMPTY: dict[str, Any] = dict.fromkeys(FIELDS)
ODD: dict[str, Any] = {
    **EMPTY,
    "flag": False,
    "real": -1e300,
    "amount": Decimal("-0.000001"),
    "moment": MOMENT.replace(microsecond=0),
    "hour": dt.time(0),
    "span": dt.timedelta(days=-1, seconds=1),
    "text": "",
    "blob": b"",
    "document": "a text",
    "texts": [],
    "numbers": [],
}


def on_device(row: Specimen, edition: int) -> dict[str, Any]:
    """The row as its device gets it; the rules say base64(blob)."""
    columns = [field.column for field in Specimen._meta.fields if not field.primary_key]
    synced: dict[str, Any] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname, t.typname, t.typcategory = 'A', e.typname"
            "  FROM pg_attribute JOIN pg_type t ON t.oid = atttypid LEFT JOIN pg_type e ON e.oid = t.typelem"
            " WHERE attrelid = 'specimens'::regclass AND attnum > 0"
        )
        types = {
            name: PgType(kind, TypeKind.ARRAY, element=PgType(element)) if is_array else PgType(kind)
            for name, kind, is_array, element in cursor.fetchall()
        }
        cursor.execute("SET timezone = 'UTC'")
        as_printed = ", ".join(f"CASE WHEN {name} IS NOT NULL THEN format('%%s', {name}) END" for name in columns)
        cursor.execute(
            f"SELECT {as_printed} FROM specimens WHERE id = %s",
            [row.pk],
        )
        texts = dict(zip(columns, cursor.fetchone(), strict=True))
    for name, text in texts.items():
        convert = converter(types[name], ValueOptions.of_edition(edition)) or str
        value: Any = None if text is None else convert(text)
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        document = value_json(value)
        synced[name] = None if document is None else orjson.loads(document)
    return synced


def values(row: uuid.UUID) -> dict[str, Any]:
    found = Specimen.objects.values(*FIELDS).get(pk=row)
    return {**found, "blob": None if found["blob"] is None else bytes(found["blob"])}


@pytest.mark.parametrize("edition", [1, 3])
@pytest.mark.parametrize("row", [FULL, EMPTY, ODD], ids=["full", "empty", "odd"])
@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns"])
def test_what_a_device_got_it_may_send_back(
    alice: User, settings: Any, edition: int, row: dict[str, Any], zone: str
) -> None:
    settings.TIME_ZONE = zone
    synced = on_device(Specimen.objects.create(**row), edition)
    made, changed = uuid.uuid4(), Specimen.objects.create()

    present = {name: value for name, value in synced.items() if value is not None}
    results = [send(HANDLER, alice, put("specimens", made, **present))]
    results += [send(HANDLER, alice, patch("specimens", changed.pk, **synced))]

    assert [result.status for result in results] == ["applied", "applied"], [
        str(result.operations[0].errors) for result in results
    ]
    assert values(made) == row
    assert values(changed.pk) == row


@pytest.mark.parametrize("sent", ["not base64!", "YQ", "====", "ü"])
def test_what_is_not_base64_is_rejected(alice: User, sent: str) -> None:
    row = Specimen.objects.create(blob=b"kept")

    result = send(HANDLER, alice, patch("specimens", row.pk, blob=sent))

    assert codes(result) == ["invalid"]
    assert result.operations[0].errors == {"blob": ["This is not base64."]}
    assert values(row.pk)["blob"] == b"kept"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("sent", ["\0", "nonsense", 2**63 - 1, -1, 1e308, True, "[", "[[1]]", '{"a":1}', "9" * 400])
def test_no_value_makes_an_upload_fail(alice: User, name: str, sent: Any) -> None:
    row = Specimen.objects.create()

    result = send(HANDLER, alice, patch("specimens", row.pk, **{name: sent}))

    assert result.status in ("applied", "rejected")
