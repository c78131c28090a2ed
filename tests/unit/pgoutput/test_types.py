"""Types put together from rows of the catalogue."""

from django_localsync.pgoutput.types import Member, PgType, PgTypeRow, TypeKind, types_from_rows

INT4 = PgTypeRow(23, "pg_catalog", "int4", "base", None, ",", ())
BOX = PgTypeRow(603, "pg_catalog", "box", "base", None, ";", ())


def test_parts_are_found_by_oid_in_whatever_order():
    rows = [
        PgTypeRow(5, "public", "stay", "composite", None, ",", [("nights", 3), ("places", 4)]),
        PgTypeRow(4, "pg_catalog", "_box", "array", 603, ",", ()),
        PgTypeRow(3, "public", "counter", "domain", 23, ",", ()),
        INT4,
        BOX,
    ]

    types = types_from_rows(rows)

    int4 = PgType("int4", oid=23)
    counter = PgType("counter", TypeKind.DOMAIN, "public", 3, element=int4)
    boxes = PgType("_box", TypeKind.ARRAY, oid=4, element=PgType("box", oid=603, delimiter=";"))
    assert types[5] == PgType(
        "stay", TypeKind.COMPOSITE, "public", 5, members=(Member("nights", counter), Member("places", boxes))
    )
    assert set(types) == {3, 4, 5, 23, 603}


def test_a_part_that_is_gone_is_unknown():
    types = types_from_rows([PgTypeRow(7, "public", "_gone", "array", 6, ",", ())])

    assert types[7].element == PgType.unknown(6)
    assert not PgType.unknown(6).is_built_in


def test_built_in_types_are_known_by_name_without_a_database():
    assert PgType.named("int4[]").element == PgType.named("int4")
    assert PgType.named("tstzmultirange").element == PgType.named("tstzrange")
    assert PgType.named("tstzrange").element == PgType.named("timestamptz")
    assert PgType.named("box").delimiter == ";"


def test_a_type_is_told_by_the_facts_of_all_of_its_parts():
    mood = PgTypeRow(1, "public", "mood", "enum", None, ",", (), ["1 label 10 sad"])
    pair = PgTypeRow(2, "public", "pair", "composite", None, ",", [("a", 3), ("b", 23)], ["2 attribute 1 a"])
    moods = PgTypeRow(3, "public", "_mood", "array", 1, ",", ())

    types = types_from_rows([mood, pair, moods, INT4])

    assert types[2].all_facts() == {"1 label 10 sad", "2 attribute 1 a"}
    assert types[23].all_facts() == frozenset()
