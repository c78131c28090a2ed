"""What the test server's pgoutput and catalogue say: the recorded frames stay true, and values are read alike."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_localsync.pgoutput.messages import Insert, Origin, Relation, Type
from django_localsync.pgoutput.types import PgType, TypeKind
from django_localsync.pgoutput.values import ValueOptions, converter
from django_localsync.replication.types import read_types
from tests.databases import temporary_database
from tests.pgoutput_capture import capture, connect, messages, read_goldens, read_script

TYPES_OF_ONES_OWN = """
    CREATE SCHEMA own;
    CREATE TYPE own.mood AS ENUM ('sad', 'so so');
    CREATE DOMAIN own.counter AS int4;
    CREATE TYPE own.pair AS (a text, dropped int, b text);
    ALTER TYPE own.pair DROP ATTRIBUTE dropped;
    CREATE TYPE own.stay AS (place own.pair, moods own.mood[], "at" timestamptz);
    CREATE DOMAIN own.stays AS own.stay[];
    CREATE TYPE own.textrange AS RANGE (subtype = text, subtype_opclass = text_pattern_ops);
"""

MANY_TYPES = """
    CREATE TABLE own.many (
        id int8 PRIMARY KEY, flag bool, small int2, real4 float4, real8 float8, amount numeric, price money,
        document jsonb, bytes bytea, day date, clock time, clock_tz timetz, stamp timestamp, stamp_tz timestamptz,
        span interval, uid uuid, address inet, place point, bits varbit, vector int2vector, position pg_lsn,
        words text[], moments timestamptz[], grid int4[], boxes box[], mood own.mood, moods own.mood[],
        counter own.counter, counters own.counter[], pair own.pair, stays own.stays,
        numbers int4range, days daterange, numberses int4multirange, texts own.textrange, textses own.textmultirange
    )
"""

ROWS = r"""
    INSERT INTO own.many VALUES
    (1, true, -1, 0.1, 'NaN', 12.50, '-1.5', '{"a": [1.0, null]}', '\x00ff', 'infinity', '24:00', '10:00+02',
     '0044-03-15 10:00 BC', '10000-01-01', '1 year -2 days 03:04:05.6', '3f2c9b52-0d4e-4d5c-9a1b-6a7f3c1d2e90',
     '10.0.0.1/8', '(1.5,2)', '0101', '1 2 3', '16/B374D848', '{a,"b \"c\"",NULL,"NULL","\\"}', '{infinity,epoch}',
     '[0:1][5:6]={{1,2},{NULL,4}}', '{(2,2),(1,1);(4,4),(3,3)}', 'so so', '{sad,"so so"}', 7, '{1,NULL}',
     ROW('x,y', E'"\\\n'), ARRAY[ROW(ROW('p', NULL), '{sad}', '2024-05-06 07:08:09.5+02')]::own.stay[], '[1,9]',
     '(,infinity)', '{[1,3),[5,8)}', '["!,",")]"]', '{["a{","b}"),["c",)}'),
    (2, false, 0, '-Infinity', 5, 'NaN', NULL, 'null', '', '0044-03-15 BC', '01:02:03.4', NULL, '-infinity',
     '2024-05-06 07:08:09.123456+02', '-00:00:01', NULL, '::1', NULL, '', '', '0/0', '{}', '{}', '{}', '{}', NULL,
     '{}', -7, '{}', ROW('', NULL), '{}', 'empty', 'empty', '{}', 'empty', '{}');
    INSERT INTO own.many (id) VALUES (3)
"""

EXPECTED = {
    "id": 1,
    "flag": 1,
    "small": -1,
    "real4": 0.1,
    "amount": "12.50",
    "price": "-$1.50",
    "document": '{"a": [1.0, null]}',
    "bytes": b"\x00\xff",
    "day": "9999-12-31",
    "clock": "24:00:00.000000",
    "clock_tz": "10:00:00+02",
    "stamp": None,
    "stamp_tz": None,
    "span": "1 year -2 days +03:04:05.6",
    "address": "10.0.0.1/8",
    "place": "(1.5,2)",
    "vector": "1 2 3",
    "position": "00000016/B374D848",
    "words": '["a","b \\"c\\"",null,"NULL","\\\\"]',
    "moments": '["9999-12-31T23:59:59.000000Z","1970-01-01T00:00:00.000000Z"]',
    "grid": "[[1,2],[null,4]]",
    "boxes": '["(2,2),(1,1)","(4,4),(3,3)"]',
    "mood": "so so",
    "moods": '["sad","so so"]',
    "counter": 7,
    "counters": "[1,null]",
    "pair": '{"a":"x,y","b":"\\"\\\\\\n"}',
    "stays": '[{"place":{"a":"p","b":null},"moods":["sad"],"at":"2024-05-06T05:08:09.500000Z"}]',
    "numbers": '{"lower":1,"upper":10,"lower_exclusive":0,"upper_exclusive":1}',
    "days": '{"lower":null,"upper":"9999-12-31","lower_exclusive":1,"upper_exclusive":1}',
    "numberses": (
        '[{"lower":1,"upper":3,"lower_exclusive":0,"upper_exclusive":1},'
        '{"lower":5,"upper":8,"lower_exclusive":0,"upper_exclusive":1}]'
    ),
    "texts": '{"lower":"!,","upper":")]","lower_exclusive":0,"upper_exclusive":0}',
    "textses": (
        '[{"lower":"a{","upper":"b}","lower_exclusive":0,"upper_exclusive":1},'
        '{"lower":"c","upper":null,"lower_exclusive":0,"upper_exclusive":1}]'
    ),
}


@pytest.fixture
def database(server_url):
    with temporary_database(server_url) as url:
        yield url


@pytest.fixture(scope="module")
def own_types(server_url):
    with temporary_database(server_url) as url, connect(url) as session:
        session.execute(TYPES_OF_ONES_OWN)
        yield session


def structure(decoded):
    """What must be the same on every server: no positions and times, oids replaced by names."""
    names = {message.oid: message.name for message in decoded if isinstance(message, Relation | Type)}
    told_apart = {"final_lsn", "commit_lsn", "end_lsn", "commit_time", "xid", "lsn", "oid"}
    for message in decoded:
        fields = {name: value for name, value in message._asdict().items() if name not in told_apart}
        match message:
            case Relation():
                types = [column._replace(type_oid=names.get(column.type_oid)) for column in message.columns]
                fields["columns"] = types
            case Origin():
                del fields["name"]
        if "relation" in fields:
            fields["relation"] = names[message.relation]
        if "relations" in fields:
            fields["relations"] = [names[oid] for oid in message.relations]
        yield type(message).__name__, fields


def test_this_server_sends_what_was_recorded(database):
    frames = capture(database, *read_script(), "golden,golden_insert_only")

    assert list(structure(messages(frames))) == list(structure(messages(read_goldens())))


def test_copied_and_streamed_values_are_the_same(database):
    setup = [TYPES_OF_ONES_OWN, MANY_TYPES, "CREATE PUBLICATION many FOR TABLE own.many"]

    stream = messages(capture(database, setup, [ROWS], "many"))

    (relation,) = [message for message in stream if isinstance(message, Relation)]
    streamed = [message.new for message in stream if isinstance(message, Insert)]
    with connect(database) as session:
        with session.cursor().copy("COPY (SELECT * FROM own.many ORDER BY id) TO STDOUT") as copy:
            copied = [list(row) for row in copy.rows()]
        types = read_types(session, [column.type_oid for column in relation.columns])
    assert streamed == copied
    options = ValueOptions()
    converters = [converter(types[column.type_oid], options) for column in relation.columns]
    values = [
        text if convert is None or text is None else convert(text)
        for convert, text in zip(converters, streamed[0], strict=True)
    ]
    row = dict(zip([column.name for column in relation.columns], values, strict=True))
    assert {name: row[name] for name in EXPECTED} == EXPECTED


def test_types_are_read_with_all_of_their_parts(own_types):
    (oid,) = own_types.execute("SELECT 'own.stays'::regtype::oid").fetchone()

    stays = read_types(own_types, [oid])[oid]

    stay = stays.element.element
    assert (stays.kind, stays.element.kind, stay.kind) == (TypeKind.DOMAIN, TypeKind.ARRAY, TypeKind.COMPOSITE)
    assert (stays.schema, stay.name) == ("own", "stay")
    assert [member.name for member in stay.members] == ["place", "moods", "at"]
    assert [member.name for member in stay.members[0].type.members] == ["a", "b"]
    assert stay.members[1].type.element.kind is TypeKind.ENUM


def test_all_built_in_types_are_as_they_are_known_without_a_database(own_types):
    names = ["int4", "_text", "box", "_box", "tstzrange", "nummultirange", "point", "int2vector", "name", "bpchar"]
    labels = [name[1:] + "[]" if name.startswith("_") else name for name in names]
    oids = dict(own_types.execute("SELECT typname, oid FROM pg_type WHERE typname = ANY(%s)", [names]).fetchall())

    types = read_types(own_types, list(oids.values()))

    def without_oid(pg_type):
        if pg_type is None:
            return None
        return pg_type.name, pg_type.kind, pg_type.schema, without_oid(pg_type.element)

    for name, label in zip(names, labels, strict=True):
        assert without_oid(types[oids[name]]) == without_oid(PgType.named(label))
    assert types[oids["_box"]].element.delimiter == ";"


def test_a_type_that_is_gone_is_unknown(own_types):
    assert read_types(own_types, [4294967295]) == {4294967295: PgType.unknown(4294967295)}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["NULL", "null", "{}", '"', "\\", ",", "(", "]", " ", "\n", "empty"]
)
optional_texts = texts | st.none()
grids = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(optional_texts, min_size=width, max_size=width), min_size=1, max_size=3)
)


def converted(session, expression, parameters, pg_type):
    """The text of an SQL expression, converted; and what Postgres itself makes of it as JSON."""
    query = f"SELECT ({expression})::text, '{pg_type}'::regtype::oid"
    text, oid = session.execute(query, parameters).fetchone()
    return converter(read_types(session, [oid])[oid], ValueOptions())(text)


fixture_is_shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@fixture_is_shared
@given(array=st.lists(optional_texts, max_size=4) | grids)
def test_any_array_of_texts_is_read_as_postgres_means_it(own_types, array):
    assert json.loads(converted(own_types, "%s::text[]", [array], "text[]")) == array


@fixture_is_shared
@given(a=optional_texts, b=optional_texts)
def test_any_composite_is_read_as_postgres_means_it(own_types, a, b):
    pair = {"a": a, "b": b}

    assert json.loads(converted(own_types, "ROW(%s::text, %s::text)::own.pair", [a, b], "own.pair")) == pair
    nested = converted(own_types, "ARRAY[ROW(%s::text, %s::text)::own.pair]", [a, b], "own.pair[]")
    assert json.loads(nested) == [pair]


@fixture_is_shared
@given(bounds=st.tuples(texts, texts), ends=st.sampled_from(["[]", "[)", "(]", "()"]), unbounded=st.sampled_from("lu "))
def test_any_range_of_texts_is_read_as_postgres_means_it(own_types, bounds, ends, unbounded):
    lower, upper = sorted(bounds, key=str.encode)
    lower, upper = None if unbounded == "l" else lower, None if unbounded == "u" else upper
    constructor, parameters = "own.textrange(%s::text, %s::text, %s)", [lower, upper, ends]
    if lower == upper:
        ends = parameters[2] = "[]"  # any other range of one point is empty
    expected = {
        "lower": lower,
        "upper": upper,
        "lower_exclusive": int(lower is None or ends[0] == "("),
        "upper_exclusive": int(upper is None or ends[1] == ")"),
    }

    assert json.loads(converted(own_types, constructor, parameters, "own.textrange")) == expected
    multirange = converted(own_types, f"own.textmultirange({constructor})", parameters, "own.textmultirange")
    assert json.loads(multirange) == [expected]
