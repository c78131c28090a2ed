"""Rules as a document: YAML text, canonical JSON or a dict become nodes that know where they stand.

YAML is read as version 1.2 (`on`, `no` and `012` are not what 1.1 made of them), with the parser of PyYAML alone:
duplicate keys and tags are errors, and length, nesting and number of nodes are bounded.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from collections.abc import Mapping as AbstractMapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..exceptions import RulesError

MAX_DOCUMENT_LENGTH = 512 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 12

_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands in YAML text: `line` and `column` count from 1, `offset` from 0. None in a dict."""

    line: int
    column: int
    offset: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, number, boolean or null."""

    value: str | int | float | bool | None
    place: Place | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """Names and their nodes, in order."""

    items: tuple[tuple[Scalar, Node], ...]
    place: Place | None


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    items: tuple[Node, ...]
    place: Place | None


Node = Scalar | Mapping | Sequence
Source = str | AbstractMapping[str, Any]


def read_document(source: Source) -> Node:
    """The root node of rules given as YAML text, as JSON text or as a dict. Raises RulesError."""
    if not isinstance(source, str):
        return _Budget().from_python(source, 0)
    if len(source) > MAX_DOCUMENT_LENGTH:
        raise _error(f"the rules are longer than {MAX_DOCUMENT_LENGTH} characters", _place_at(source, 0))
    if source.lstrip().startswith("{"):
        try:
            return _Budget().from_python(json.loads(source, object_pairs_hook=_pairs), 0)
        except (json.JSONDecodeError, RecursionError):
            pass  # YAML in flow style looks alike
    return _from_yaml(source)


def canonical_json(source: Source) -> str:
    """The rules as compact JSON text, which compiles to the same plan. Raises RulesError."""
    return json.dumps(_to_python(read_document(source)), ensure_ascii=False, separators=(",", ":"))


class Locator:
    """Finds characters of text scalars in the YAML text they came from.

    A scalar's characters are searched one by one in the text, whose indentation, folding and quotes are passed over;
    escapes in double quotes may put the column off.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._offsets: dict[Scalar, list[int]] = {}

    def locate(self, node: Scalar, at: int) -> tuple[int | None, int | None]:
        """Line and column, from 1, of the character `at` of a text; None and None if it came from a dict."""
        if node.place is None or not isinstance(node.value, str):
            return None, None
        if node not in self._offsets:
            self._offsets[node] = self._search(node.value, node.place.offset)
        offsets = self._offsets[node]
        offset = offsets[min(at, len(offsets) - 1)] if offsets else node.place.offset
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def _search(self, value: str, start: int) -> list[int]:
        """The offset in the text of each character of a scalar."""
        first = self._text[start : start + 1]
        after = self._text.find("\n", start) if first in ("|", ">") else start + (first in ("'", '"'))
        offsets, offset = [], after
        for character in value:
            if not character.isspace():
                found = self._text.find(character, after)
                if found < 0:
                    break
                offset, after = found, found + 1
            offsets.append(offset)
        return offsets


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs, so that duplicate names are seen."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


class _Budget:
    """Builds nodes and counts them, since aliases could multiply them without end."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def spend(self, depth: int, place: Place | None) -> None:
        self._left -= 1
        if self._left < 0:
            raise _error(f"the rules have more than {MAX_NODES} parts", place)
        if depth > MAX_DEPTH:
            raise _error(f"the rules are nested deeper than {MAX_DEPTH} levels", place)

    def from_python(self, value: Any, depth: int) -> Node:
        self.spend(depth, None)
        if isinstance(value, str | int | float | bool | None):
            return Scalar(value, None)
        if isinstance(value, AbstractMapping):
            value = _Pairs(value.items())
        if isinstance(value, _Pairs):
            return _mapping([(Scalar(key, None), self.from_python(item, depth + 1)) for key, item in value], None)
        if isinstance(value, AbstractSequence) and not isinstance(value, bytes | bytearray):
            return Sequence(tuple(self.from_python(item, depth + 1) for item in value), None)
        raise RulesError(f"rules consist of texts, numbers, lists and dicts, not of {type(value).__name__}")


def _mapping(items: list[tuple[Node, Node]] | list[tuple[Scalar, Node]], place: Place | None) -> Mapping:
    seen: set[object] = set()
    checked = []
    for key, node in items:
        if not isinstance(key, Scalar) or not isinstance(key.value, str):
            raise _error("a key must be a name", key.place, "write it in quotes")
        if key.value in seen:
            raise _error(f"the key {key.value!r} stands twice", key.place, "remove one of them")
        seen.add(key.value)
        checked.append((key, node))
    return Mapping(tuple(checked), place)


def _error(message: str, place: Place | None, hint: str | None = None) -> RulesError:
    line, column = (place.line, place.column) if place else (None, None)
    return RulesError(message, line=line, column=column, hint=hint)


# YAML


def _from_yaml(text: str) -> Node:
    try:
        return _Composer(yaml.parse(text, Loader=_EVENTS)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(mark.line + 1, mark.column + 1, mark.index) if mark else None
        raise _error("the text is not YAML", place, "quote texts that hold a colon, # or quotes") from None
    except (yaml.YAMLError, UnicodeError) as error:
        at = int(getattr(error, "position", 0) or getattr(error, "start", 0))
        hint = "it must be UTF-8 without control characters"
        raise _error("the text is not YAML", _place_at(text, at), hint) from None


class _Composer:
    """Nodes from YAML events."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events, self._budget = events, _Budget()
        self._anchors: dict[str, Node] = {}

    def document(self) -> Node:
        root: Node = Scalar(None, Place(1, 1, 0))
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _error("the text holds several YAML documents", _place(event), "remove the line ---")
                root = self._node(next(self._events), 0)
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        place = _place(event)
        self._budget.spend(depth, place)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, place)
        if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
            raise _error("YAML tags are not supported", place, "remove the word that begins with !")
        node = self._unanchored(event, depth, place)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _unanchored(self, event: yaml.Event, depth: int, place: Place) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            plain = not event.style and event.tag is None
            return Scalar(_resolve(event.value) if plain else event.value, place)
        children = []
        while not isinstance(child := next(self._events), yaml.SequenceEndEvent | yaml.MappingEndEvent):
            children.append(self._node(child, depth + 1))
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(tuple(children), place)
        return _mapping(list(zip(children[::2], children[1::2], strict=True)), place)

    def _alias(self, event: yaml.AliasEvent, place: Place) -> Node:
        node = self._anchors.get(str(event.anchor))
        if not isinstance(node, Scalar):
            raise _error("only texts can be repeated by a YAML alias", place, "use a common table expression (`with`)")
        return node


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    assert mark is not None  # parsers set it, only events made by hand lack it
    return Place(mark.line + 1, mark.column + 1, mark.index)


def _place_at(text: str, offset: int) -> Place:
    line_start = text.rfind("\n", 0, offset) + 1
    return Place(text.count("\n", 0, offset) + 1, offset - line_start + 1, offset)


_NULL = re.compile(r"null|Null|NULL|~|")
_INTEGER = re.compile(r"[-+]?[0-9]{1,30}")
_REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _resolve(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar, by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema)."""
    if _NULL.fullmatch(text):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _REAL.fullmatch(text):
        return float(text)
    return text


def _to_python(node: Node) -> Any:
    match node:
        case Scalar(value):
            return value
        case Sequence(items):
            return [_to_python(item) for item in items]
        case Mapping(items):
            return {str(key.value): _to_python(item) for key, item in items}
