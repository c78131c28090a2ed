"""The vectors of the language: functions, whole configurations, which configurations are valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from django_localsync.exceptions import RulesError
from django_localsync.sync_rules import CompiledRules, canonical_json, compile_rules
from django_localsync.sync_rules.parameters import parameters_text
from tests.unit.sync_rules.rules import Index, evaluate, request_of
from tests.vectors import vectors

FUNCTIONS = [
    pytest.param(vector.values[0], edition, id=f"{vector.id}-edition-{edition}")
    for vector in vectors("functions")
    for edition in (1, 3)
    if f"expected_edition_{edition}" in vector.values[0]
]


def function_rules(edition: int, expr: str) -> str:
    query = f"SELECT 'x' AS id, {expr} AS v FROM t"
    if edition == 1:
        return json.dumps({"bucket_definitions": {"s": {"data": [query]}}})
    return json.dumps({"config": {"edition": edition}, "streams": {"s": {"query": query}}})


@pytest.mark.parametrize(("vector", "edition"), FUNCTIONS)
def test_functions_give_the_values_of_the_language(vector: Mapping[str, Any], edition: int) -> None:
    expected = vector[f"expected_edition_{edition}"]
    rules = function_rules(edition, vector["expr"])
    if expected.get("config_error"):
        with pytest.raises(RulesError):
            compile_rules(rules)
        return

    record = vector["columns"] or {"other": {"null": True}}
    buckets, _, errors = evaluate(compile_rules(rules).plan, "t", record)

    if expected.get("evaluation_error"):
        assert (buckets, len(errors)) == ([], 1)
    elif expected.get("absent"):
        assert "v" not in json.loads(buckets[0].data)
    else:
        assert errors == []
        assert exact(buckets[0].data)["v"] == exact(expected["json"])


def exact(text: str) -> Any:
    """A JSON value in which integers and reals differ."""
    return json.loads(text, parse_float=lambda number: ("real", float(number)))


@pytest.mark.parametrize("vector", vectors("config_validity"))
def test_configurations_are_accepted_or_refused(vector: Mapping[str, Any]) -> None:
    if not vector["expected_valid"]:
        with pytest.raises(RulesError):
            compile_rules(vector["config"])
        return
    assert len(compile_rules(vector["config"]).warnings) == vector["expected_warnings"]


@pytest.mark.parametrize("vector", vectors("bucket_name"))
def test_bucket_parameters_are_written_as_in_names(vector: Mapping[str, Any]) -> None:
    values = [next(iter(value.items())) for value in vector["values"]]
    convert = {"int": int, "real": float, "text": str}
    assert parameters_text([convert[kind](content) for kind, content in values]) == vector["expected_suffix"]


class Renaming:
    """Bucket names are opaque, so ours and the vectors' must only correspond one to one; values may be reordered."""

    def __init__(self) -> None:
        self._there: dict[str, str] = {}
        self._back: dict[str, str] = {}

    def check(self, ours: str, theirs: str) -> None:
        assert self._there.setdefault(ours, theirs) == theirs
        assert self._back.setdefault(theirs, ours) == ours


def split(bucket: str) -> tuple[str, str]:
    """A bucket name of the vectors: definition without version, and its parameters in some fixed order."""
    match = re.fullmatch(r"(?:\d+#)?([^\[]*)(\[.*\])", bucket)
    assert match is not None
    return match[1], ordered(match[2])


def ordered(parameters: str) -> str:
    return json.dumps(sorted(json.loads(parameters), key=repr))


@pytest.mark.parametrize("form", ["yaml", "canonical"])
@pytest.mark.parametrize("vector", vectors("configs"))
def test_configurations_evaluate_rows_and_requests(vector: Mapping[str, Any], form: str) -> None:
    source = vector["config"] if form == "yaml" else canonical_json(vector["config"])
    rules = compile_rules(source, default_schema=vector["default_schema"])
    renaming = Renaming()

    if "warnings" in vector:
        assert len(rules.warnings) == vector["warnings"]
    for row in vector.get("rows", ()):
        check_row(rules, row, renaming)
    index = Index(rules.plan)
    for row in vector.get("parameter_rows", ()):
        index.add(row["table"], row["record"])
    for request in vector.get("requests", ()):
        check_request(rules, index, request, renaming)


def check_row(rules: CompiledRules, row: Mapping[str, Any], renaming: Renaming) -> None:
    buckets, _, errors = evaluate(rules.plan, row["table"], row["record"])
    expected = row["expected"]
    ours = {
        (rules.plan.bucket_sources[item.source].name, ordered(item.parameters), item.row_type, item.row_id): item.data
        for item in buckets
    }
    theirs = {
        (*split(item["bucket"]), item["object_type"], item["object_id"]): item["data"] for item in expected["rows"]
    }
    match_up(ours, theirs, renaming)
    assert len(errors) == expected.get("error_count", 0)
    for key, data in ours.items():
        name = renaming._there[key[0]]
        wanted = theirs[(name, *key[1:])]
        assert (list(exact(data)), exact(data)) == (list(exact(wanted)), exact(wanted))


def check_request(rules: CompiledRules, index: Index, request: Mapping[str, Any], renaming: Renaming) -> None:
    asked = request_of(request["request"])
    resolution = index.resolve(asked)
    expected = request["expected"]

    def stream_of(reason: tuple[str, int]) -> str:
        kind, number = reason
        return resolution.streams[number].name if kind == "default" else asked.subscriptions[number].stream

    def reason_of(reason: Any) -> Any:
        return "default" if reason == "default" else ("sub", reason["sub"])

    ours = {
        (rules.plan.bucket_sources[item.source].name, ordered(item.parameters)): (
            item.priority,
            {"default" if reason[0] == "default" else reason for reason in item.reasons},
            {stream_of(reason) for reason in item.reasons},
        )
        for item in resolution.buckets
    }
    theirs = {
        split(item["bucket"]): (
            item["priority"],
            {reason_of(reason) for reason in item["reasons"]},
            item["definition"],
        )
        for item in expected["buckets"]
    }
    match_up(ours, theirs, renaming)
    for (name, parameters), (priority, reasons, streams) in ours.items():
        wanted = theirs[renaming._there[name], parameters]
        assert (priority, reasons) == wanted[:2]
        assert wanted[2] in streams
    errors = [error for stream in resolution.streams for error in stream.errors]
    assert len(errors) == len(expected.get("errors", ()))


def match_up(ours: Iterable[tuple[str, ...]], theirs: Iterable[tuple[str, ...]], renaming: Renaming) -> None:
    """Pair our keys with theirs, which differ in the first part only."""
    left, right = sorted(ours, key=lambda key: key[1:]), sorted(theirs, key=lambda key: key[1:])
    assert [key[1:] for key in left] == [key[1:] for key in right]
    groups: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
    for ours_key, theirs_key in zip(left, right, strict=True):
        names = groups.setdefault(ours_key[1:], ([], []))
        names[0].append(ours_key[0])
        names[1].append(theirs_key[0])
    for ours_names, theirs_names in groups.values():
        for pair in zip(sorted(ours_names), sorted(theirs_names), strict=True):
            renaming.check(*pair)
