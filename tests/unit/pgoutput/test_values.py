"""Postgres text to SQLite values, and those to row JSON."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.pgoutput.types import PgType, TypeKind
from django_localsync.pgoutput.values import ValueOptions, converter, value_json
from tests.unit.pgoutput.type_labels import array_of, composite, domain, labelled
from tests.vectors import vectors

EDITION_1, EDITION_3 = ValueOptions.of_edition(1), ValueOptions.of_edition(3)
OPTIONS = {
    "expected_edition_1": EDITION_1,
    "expected_edition_3": EDITION_3,
    "expected_edition_3_ms": ValueOptions(timestamp_max_precision=3),
    "expected_edition_3_s": ValueOptions(timestamp_max_precision=0),
}

TEXT, INT4, BOX = map(PgType.named, ("text", "int4", "box"))


def convert(pg_type, text, options=EDITION_3):
    function = converter(pg_type, options)
    return text if text is None or function is None else function(text)


def sqlite_value(encoded):
    ((kind, value),) = encoded.items()
    match kind:
        case "null":
            return None
        case "int":
            return int(value)
        case "real":
            return float(value)
        case "text":
            return value
        case "blob":
            return bytes.fromhex(value)


def same(first, second):
    """Equal values of one kind; NaN is NaN."""
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("vector", vectors("pg_types"))
def test_type_vector(vector):
    pg_type = labelled(vector["pg_type"])
    for edition, options in OPTIONS.items():
        if edition in vector:
            value = convert(pg_type, vector["pg_text"], options)
            assert same(value, sqlite_value(vector[edition])), (edition, value)


def json_kind(text):
    """The JSON value, where integers and reals are told apart by their spelling."""
    return json.loads(text, parse_float=lambda digits: ("real", float(digits)))


@pytest.mark.parametrize("vector", vectors("row_value_json"))
def test_row_value_json_vector(vector):
    value = sqlite_value(vector["value"])
    if vector.get("negative_zero"):
        value = -0.0

    assert json_kind(value_json(value)) == json_kind(vector["expected"])


@given(st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none())
def test_json_of_a_value_keeps_its_kind_and_all_of_its_digits(value):
    assert same(json.loads(value_json(value)), value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_real_that_json_cannot_say_is_null(value):
    assert value_json(value) == "null"


def test_a_blob_is_left_out_of_the_row():
    assert value_json(b"\x00") is None


@pytest.mark.parametrize("name", ["text", "varchar", "uuid", "numeric", "jsonb", "interval", "timetz", "geometry"])
def test_the_text_itself_is_the_value_of_most_types(name):
    assert converter(PgType.named(name), EDITION_3) is None


@pytest.mark.parametrize("name", ["time", "timestamp"])
def test_only_edition_1_has_times_as_printed(name):
    assert convert(PgType.named(name), "24:00:00.5", EDITION_1) == "24:00:00.5"
    assert convert(PgType.named(name), "24:00:00.5") == "24:00:00.500000"


def test_a_base_type_of_ones_own_stays_text_whatever_its_name():
    assert converter(PgType("int4", schema="public"), EDITION_3) is None
    assert converter(PgType.unknown(99999), EDITION_3) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-06 07:08:09.123456+00", "2024-05-06T07:08:09.123456Z"),
        ("1890-01-01 00:00:00-00:00:21", "1890-01-01T00:00:21.000000Z"),
        ("2024-05-06 01:00:00.5+05:30", "2024-05-05T19:30:00.500000Z"),
        ("9999-12-31 23:59:59.999999+00", "9999-12-31T23:59:59.999999Z"),
        ("9999-12-31 23:59:59-01", None),
        ("10000-01-01 00:00:00+00", None),
        ("0001-01-01 00:00:00+01", None),
        ("0044-03-15 10:00:00+00 BC", None),
        ("-infinity", "0000-01-01T00:00:00.000000Z"),
    ],
)
def test_moments_in_utc(text, expected):
    assert convert(PgType.named("timestamptz"), text) == expected


def test_precision_is_cut_off_not_rounded():
    options = ValueOptions(timestamp_max_precision=3)

    assert convert(PgType.named("timestamp"), "2024-05-06 07:08:09.999999", options) == "2024-05-06T07:08:09.999"


def test_nine_digits_asked_for_are_the_six_there_are():
    options = ValueOptions(timestamp_max_precision=9)

    assert convert(PgType.named("time"), "07:08:09.5", options) == "07:08:09.500000"


@pytest.mark.parametrize(
    ("element", "text", "expected"),
    [
        ("int4", "{{1,2},{NULL,4}}", "[[1,2],[null,4]]"),
        ("int4", "[0:0][-1:0]={{1,2}}", "[[1,2]]"),
        ("text", r'{"a,b","{c}","d\\e","","f\ng"}', r'["a,b","{c}","d\\e","","fng"]'),
        ("text", '{"a\nb",æ}', r'["a\nb","æ"]'),
        ("text", '{"[0:1]={",x}', '["[0:1]={","x"]'),
        ("float8", "{NaN,Infinity,-0.5,1e+21}", "[null,null,-0.5,1e+21]"),
        ("jsonb", r'{"{\"a\": [1, 2.0]}",NULL}', '[{"a": [1, 2.0]},null]'),
        ("int4range", '{"[1,3)",empty}', '[{"lower":1,"upper":3,"lower_exclusive":0,"upper_exclusive":1},"empty"]'),
    ],
)
def test_arrays(element, text, expected):
    assert convert(PgType.named(f"{element}[]"), text) == expected


def test_edition_1_keeps_ranges_in_arrays_as_text():
    assert convert(PgType.named("int4range[]"), '{"[1,3)",empty}', EDITION_1) == '["[1,3)","empty"]'


def test_composites_nest_as_json():
    inner = composite("inner", tags=array_of(TEXT), n=INT4)
    outer = composite("outer", **{'in"ner': inner, "more": array_of(inner)})

    value = convert(outer, r'("(""{a,\\""b c\\""}"",1)","{""(,)"",NULL}")')

    assert json.loads(value) == {'in"ner': {"tags": ["a", "b c"], "n": 1}, "more": [{"tags": None, "n": None}, None]}


def test_an_empty_text_in_a_composite_is_not_null():
    assert convert(composite("pair", a=TEXT, b=TEXT), '("",)') == '{"a":"","b":null}'


def test_an_attribute_added_since_is_null_and_one_too_many_is_dropped():
    pair = composite("pair", a=TEXT, b=TEXT)

    assert convert(pair, "(x)") == '{"a":"x","b":null}'
    assert convert(pair, "(x,y,z)") == '{"a":"x","b":"y"}'
    assert convert(composite("nothing"), "()") == "{}"


def test_a_domain_is_what_it_is_based_on():
    counters = domain("counters", array_of(domain("counter", INT4)))

    assert convert(counters, "{1,2}") == "[1,2]"
    assert converter(counters, EDITION_1) is None
    assert converter(domain("handle", TEXT), EDITION_3) is None


def test_ranges_of_texts_may_hold_any_character():
    textrange = PgType("textrange", TypeKind.RANGE, "public", element=TEXT)
    textmultirange = PgType("textmultirange", TypeKind.MULTIRANGE, "public", element=textrange)
    expected = {"lower": 'a,"b', "upper": ")\\", "lower_exclusive": 0, "upper_exclusive": 0}

    text = r'["a,""b",")\\"]'

    assert json.loads(convert(textrange, text)) == expected
    assert json.loads(convert(textmultirange, f'{{{text},("",]}}'))[0] == expected
    assert json.loads(convert(textmultirange, f'{{{text},("",)}}'))[1]["lower"] == ""
    assert convert(textmultirange, "{}") == "[]"


def test_what_is_no_range_is_an_error():
    with pytest.raises(ValueError, match="not a range"):
        convert(PgType.named("int4range"), "1-3")


def test_a_bound_that_sqlite_cannot_hold_is_null():
    value = convert(PgType.named("tsrange"), '["0044-03-15 10:00:00 BC",infinity]')

    assert json.loads(value) == {
        "lower": None,
        "upper": "9999-12-31T23:59:59.000000",
        "lower_exclusive": 0,
        "upper_exclusive": 0,
    }


def test_a_member_that_is_older_than_its_type_is_null_where_it_cannot_be_read():
    altered = composite("altered", n=INT4, day=PgType.named("timestamptz"), grid=array_of(INT4), a=TEXT)

    assert json.loads(convert(altered, "(x,+00,7,b)")) == {"n": None, "day": None, "grid": None, "a": "b"}


def test_arrays_of_integers_are_json_but_for_brackets_bounds_and_null():
    numbers = composite("numbers", few=array_of(INT4))

    assert (
        convert(PgType.named("int8[]"), "[2:3][0:1]={{1,NULL},{-3,9007199254740993}}")
        == "[[1,null],[-3,9007199254740993]]"
    )
    assert convert(PgType.named("oid[]"), "{}") == "[]"
    assert convert(numbers, '("{1,NULL}")') == '{"few":[1,null]}'


@pytest.mark.parametrize("digits", [None, *range(7)])
@pytest.mark.parametrize("fraction", ["", *("." + "123456"[:count] for count in range(1, 7))])
def test_every_precision_of_every_fraction(digits, fraction):
    options = EDITION_1 if digits is None else ValueOptions(timestamp_max_precision=digits)
    kept = fraction if digits is None else fraction[1:][:digits].ljust(digits, "0")
    end = kept if digits is None or not digits else "." + kept
    joint = " " if digits is None else "T"

    assert convert(PgType.named("time"), f"07:08:09{fraction}", options) == f"07:08:09{end}"
    for year in ("2024", "10000"):
        expected = f"{year}-05-06{joint}07:08:09{end}"
        assert convert(PgType.named("timestamp"), f"{year}-05-06 07:08:09{fraction}", options) == expected
    assert convert(PgType.named("timestamp"), f"0044-05-06 07:08:09{fraction} BC", options) is None
    zoned = convert(PgType.named("timestamptz"), f"2024-05-06 07:08:09{fraction}+00", options)
    assert zoned == f"2024-05-06{joint}07:08:09{end}Z"


@pytest.mark.parametrize(
    "text",
    [
        "{" + '"a\\"\\\\",' * 100_000 + "x}",
        '{"' + '\\"' * 1_000_000 + '"}',
        "{" * 6 + "1" + "}" * 6,
        '{"' + "a" * 10**7 + '"}',
    ],
    ids=["many", "escapes", "deep", "long"],
)
def test_time_is_linear_in_the_length_of_a_value(text):
    began = time.process_time()

    assert json.loads(convert(PgType.named("text[]"), text))
    assert time.process_time() - began < 2
