"""The structure of a rules document: options, streams, old-style definitions, common table expressions.

Everything that can be wrong without looking into a query is found here, all of it in one reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ..exceptions import RulesError
from ..pgoutput.values import ValueOptions
from .document import Locator, Mapping, Node, Place, Scalar, Sequence
from .syntax import SqlError
from .translate import suggestion

Definition = TypeVar("Definition")

MAX_DEFINITIONS = 1000
DEFAULT_PRIORITY = 3
_PRECISIONS = {"seconds": 0, "milliseconds": 3, "microseconds": 6, "nanoseconds": 9}
_FLAGS = (
    "timestamps_iso8601",
    "versioned_bucket_ids",
    "fixed_json_extract",
    "custom_postgres_types",
    "unstable_sqlite_expression_engine",
)


@dataclass(frozen=True, slots=True)
class RulesWarning:
    """Something that is allowed and probably not meant. Fields as in RulesError."""

    kind: str
    message: str
    definition: str | None
    line: int | None
    column: int | None
    hint: str | None


class Findings:
    """Collects errors and warnings of one document, with their places."""

    def __init__(self, text: str) -> None:
        self._locator = Locator(text)
        self.errors: list[RulesError] = []
        self.warnings: list[RulesWarning] = []

    def error(self, message: str, place: Place | None, definition: str | None = None, hint: str | None = None) -> None:
        """Note an error at a node."""
        line, column = (place.line, place.column) if place else (None, None)
        self.errors.append(RulesError(message, definition=definition, line=line, column=column, hint=hint))

    def sql_error(self, error: SqlError, query: Scalar, definition: str | None) -> None:
        """Note an error inside a query."""
        line, column = self._locator.locate(query, error.at)
        self.errors.append(RulesError(error.message, definition=definition, line=line, column=column, hint=error.hint))

    def warn(
        self, kind: str, message: str, query: Scalar, at: int, definition: str | None, hint: str | None = None
    ) -> None:
        """Note a warning about a query (or any scalar, with `at` 0)."""
        line, column = self._locator.locate(query, at)
        self.warnings.append(RulesWarning(kind, message, definition, line, column, hint))

    def position(self, query: Scalar, at: int) -> tuple[int | None, int | None]:
        """Line and column of an offset in a query."""
        return self._locator.locate(query, at)


@dataclass(frozen=True, slots=True)
class Options:
    """The section `config`."""

    edition: int = 1
    fixed_json_extract: bool = False
    values: ValueOptions = field(default_factory=lambda: ValueOptions.of_edition(1))


@dataclass(frozen=True, slots=True)
class StreamDefinition:
    """A stream as written."""

    name: Scalar
    queries: tuple[Scalar, ...]
    expressions: tuple[tuple[Scalar, Scalar], ...]
    auto_subscribe: bool
    priority: int
    accepts_danger: bool


@dataclass(frozen=True, slots=True)
class BucketDefinition:
    """An old-style bucket definition as written."""

    name: Scalar
    parameters: tuple[Scalar, ...]
    data: tuple[Scalar, ...]
    priority: int
    accepts_danger: bool


@dataclass(frozen=True, slots=True)
class EventDefinition:
    """An event and its payload queries as written."""

    name: Scalar
    payloads: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class RulesDocument:
    """A document that is well-formed; its queries are not yet looked at."""

    options: Options
    streams: tuple[StreamDefinition, ...]
    buckets: tuple[BucketDefinition, ...]
    expressions: tuple[tuple[Scalar, Scalar], ...]
    events: tuple[EventDefinition, ...]


def read_definitions(root: Node, findings: Findings) -> RulesDocument | None:
    """The definitions of a document; what is wrong goes to `findings`, and None is given if nothing is usable."""
    if not isinstance(root, Mapping):
        message = "the rules are empty" if isinstance(root, Scalar) and root.value is None else "rules must be a map"
        findings.error(message, root.place, hint="begin with config: {edition: 3} and streams:")
        return None
    return _Reader(findings).document(root)


class _Reader:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._definition: str | None = None

    def document(self, root: Mapping) -> RulesDocument:
        entries = self._entries(root, ("config", "streams", "bucket_definitions", "with", "event_definitions"))
        options = self._options(entries.get("config"))
        streams, buckets = entries.get("streams"), entries.get("bucket_definitions")
        if options.edition >= 3:
            if buckets is not None:
                hint = "write streams, or remove the edition: bucket definitions are of editions 1 and 2"
                self._error("bucket_definitions are not possible in edition 3", buckets, hint)
            if streams is None:
                self._error("streams are missing", root, "edition 3 needs the key streams")
        elif streams is None and buckets is None:
            self._error("streams or bucket_definitions are missing", root, "new rules use edition 3 and streams")
        if options.edition < 3 and "with" in entries:
            self._error("with is only possible in edition 3", entries["with"])
        found_streams = tuple(self._named(streams, self._stream))
        found_buckets = tuple(self._named(buckets, self._bucket_definition))
        self._unique([*(item.name for item in found_streams), *(item.name for item in found_buckets)])
        return RulesDocument(
            options,
            found_streams,
            found_buckets,
            self._expressions(entries.get("with")),
            tuple(self._named(entries.get("event_definitions"), self._event)),
        )

    # Sections

    def _options(self, node: Node | None) -> Options:
        entries = self._entries(node, ("edition", "storage_version", "timestamp_max_precision", *_FLAGS))
        edition = self._integer(entries.get("edition"), "edition", 1, 3, 1)
        self._integer(entries.get("storage_version"), "storage_version", 2, 3, 2)
        flags = {name: self._boolean(entries.get(name), name, edition > 1) for name in _FLAGS}
        engine = entries.get("unstable_sqlite_expression_engine")
        if engine is not None and flags["unstable_sqlite_expression_engine"] and edition < 3:
            self._error("unstable_sqlite_expression_engine is of edition 3", engine)
        digits = self._precision(entries.get("timestamp_max_precision"), flags["timestamps_iso8601"])
        values = ValueOptions(flags["timestamps_iso8601"], flags["custom_postgres_types"], digits)
        return Options(edition, flags["fixed_json_extract"], values)

    def _precision(self, node: Node | None, iso8601: bool) -> int:
        if node is None:
            return _PRECISIONS["microseconds"]
        name = node.value if isinstance(node, Scalar) else None
        if not isinstance(name, str) or name not in _PRECISIONS:
            self._error("timestamp_max_precision is unknown", node, f"one of {', '.join(_PRECISIONS)}")
            return _PRECISIONS["microseconds"]
        if not iso8601:
            self._error("timestamp_max_precision needs timestamps_iso8601", node, "add timestamps_iso8601: true")
        return _PRECISIONS[name]

    def _stream(self, name: Scalar, node: Node) -> StreamDefinition:
        known = ("query", "queries", "auto_subscribe", "priority", "with", "accept_potentially_dangerous_queries")
        entries = self._entries(node, known)
        query, queries = entries.get("query"), entries.get("queries")
        if (query is None) == (queries is None):
            self._error("a stream has either query or queries", node, "write one of them")
        found = self._texts(query if query is not None else queries, "query", single=query is not None)
        return StreamDefinition(
            name,
            found,
            self._expressions(entries.get("with")),
            self._boolean(entries.get("auto_subscribe"), "auto_subscribe", False),
            self._priority(entries.get("priority")),
            self._accepts(entries),
        )

    def _bucket_definition(self, name: Scalar, node: Node) -> BucketDefinition:
        known = ("parameters", "data", "priority", "accept_potentially_dangerous_queries")
        entries = self._entries(node, known)
        parameters, data = entries.get("parameters"), entries.get("data")
        if not isinstance(data, Sequence):
            self._error("data must be a list of queries", data or node)
        if self._is_empty(node, "parameters"):
            hint = "without the key parameters, everybody gets these rows: remove it if that is meant"
            self._error("parameters are empty", node, hint)
        return BucketDefinition(
            name,
            self._texts(parameters, "parameters", single=isinstance(parameters, Scalar)),
            self._texts(data, "data") if isinstance(data, Sequence) else (),
            self._priority(entries.get("priority")),
            self._accepts(entries),
        )

    def _event(self, name: Scalar, node: Node) -> EventDefinition:
        entries = self._entries(node, ("payloads",))
        payloads = entries.get("payloads")
        if not isinstance(payloads, Sequence):
            self._error("payloads must be a list of queries", payloads or node)
            return EventDefinition(name, ())
        return EventDefinition(name, self._texts(payloads, "payloads") if payloads.items else ())

    def _expressions(self, node: Node | None) -> tuple[tuple[Scalar, Scalar], ...]:
        if node is None:
            return ()
        if not isinstance(node, Mapping):
            self._error("with must be a map from names to queries", node)
            return ()
        return tuple((name, text[0]) for name, value in node.items if (text := self._texts(value, "with", single=True)))

    # Values

    def _named(self, node: Node | None, read: Callable[[Scalar, Node], Definition]) -> Iterator[Definition]:
        """Each definition of a map; errors in it carry its name."""
        if node is None:
            return
        if not isinstance(node, Mapping):
            self._error("this must be a map from names to definitions", node)
            return
        if len(node.items) > MAX_DEFINITIONS:
            self._error(f"more than {MAX_DEFINITIONS} definitions", node)
            return
        for name, value in node.items:
            self._definition = str(name.value)
            if not name.value:
                self._error("a definition needs a name", name)
            yield read(name, value)
            self._definition = None

    def _unique(self, names: list[Scalar]) -> None:
        seen: set[object] = set()
        for name in names:
            if name.value in seen:
                self._error(f"the name {name.value!r} is used twice", name, "rename one of the definitions")
            seen.add(name.value)

    def _entries(self, node: Node | None, known: tuple[str, ...]) -> dict[str, Node]:
        """The values of a map by their known keys; null values count as absent."""
        if node is None or (isinstance(node, Scalar) and node.value is None):
            return {}
        if not isinstance(node, Mapping):
            self._error(f"this must be a map with the keys {', '.join(known)}", node)
            return {}
        for key, _ in node.items:
            if key.value not in known:
                hint = suggestion(str(key.value), list(known)) or f"known are {', '.join(known)}"
                self._error(f"the key {key.value!r} is unknown", key, hint)
        return {
            str(key.value): value
            for key, value in node.items
            if key.value in known and not (isinstance(value, Scalar) and value.value is None)
        }

    def _texts(self, node: Node | None, key: str, *, single: bool = False) -> tuple[Scalar, ...]:
        """One query, or a list of queries."""
        if node is None:
            return ()
        items = (node,) if single else node.items if isinstance(node, Sequence) else None
        if not items:
            self._error(f"{key} must be a list of queries", node)
            return ()
        texts = tuple(item for item in items if isinstance(item, Scalar) and isinstance(item.value, str))
        if len(texts) < len(items):
            self._error(f"{key} must be SQL text", node, "quote it, if YAML reads it otherwise")
        return texts

    def _is_empty(self, node: Node, key: str) -> bool:
        """Whether the key stands there without a value."""
        items = node.items if isinstance(node, Mapping) else ()
        values = [value for name, value in items if name.value == key]
        return any(isinstance(value, Scalar) and value.value is None for value in values)

    def _accepts(self, entries: dict[str, Node]) -> bool:
        key = "accept_potentially_dangerous_queries"
        return self._boolean(entries.get(key), key, False)

    def _priority(self, node: Node | None) -> int:
        return self._integer(node, "priority", 0, 3, DEFAULT_PRIORITY)

    def _integer(self, node: Node | None, key: str, least: int, most: int, default: int) -> int:
        if node is None:
            return default
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._error(f"{key} must be a number from {least} to {most}", node)
            return default
        return value

    def _boolean(self, node: Node | None, key: str, default: bool) -> bool:
        if node is None:
            return default
        value = node.value if isinstance(node, Scalar) else None
        if not isinstance(value, bool):
            self._error(f"{key} must be true or false", node)
            return default
        return value

    def _error(self, message: str, node: Node | None, hint: str | None = None) -> None:
        self._findings.error(message, node.place if node else None, self._definition, hint)
