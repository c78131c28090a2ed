"""What is synced of a row: the columns that a QuerySet loads, under their names in the database.

Columns are named one by one, so that what is added to a table later does not reach devices by itself.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from django.db import models
from django.db.models.expressions import Col
from django.db.models.fields.composite import CompositePrimaryKey
from django.db.models.sql import Query
from django.db.models.sql.datastructures import Join

from .conditions import QueryTranslator
from .errors import NotExpressible
from .kinds import Kind, Typed
from .printing import Printer, quoted
from .scopes import AnyField
from .terms import Column, mentions


@dataclass(frozen=True, slots=True)
class Loaded:
    """The fields and annotations that a QuerySet loads. `named`: those that only() or values() name."""

    fields: tuple[AnyField, ...]
    named: frozenset[str]
    annotations: dict[str, Any]


def loaded(query: Query) -> Loaded:
    """What a QuerySet loads. Raises NotExpressible for columns of other tables."""
    model = cast("type[models.Model]", query.model)
    every = [field for field in model._meta.concrete_fields if not isinstance(field, CompositePrimaryKey)]
    annotations = dict(query.annotation_select)
    if not query.default_cols or query.select:
        fields = [_own_field(column, query, model) for column in query.select]
        names = frozenset(query.values_select)
        if names == {field.attname for field in every}:
            names = frozenset()  # values() without names
        return Loaded(tuple(dict.fromkeys(fields)), names, annotations)
    only, is_defer = query.deferred_loading
    mask: Any = query.get_select_mask()
    return Loaded(
        tuple(field for field in every if not mask or field in mask or field.primary_key),
        frozenset() if is_defer else frozenset(only),
        annotations,
    )


def _own_field(column: Any, query: Query, model: type[models.Model]) -> AnyField:
    if isinstance(column, Col) and _is_own(query, column.alias):
        return column.target
    what = f"{column.target.model.__name__}.{column.target.name}" if isinstance(column, Col) else repr(column)
    hint = "give a QuerySet of that model to Stream as well, and join on the device"
    raise NotExpressible(f"{what} is a column of another table than that of {model.__name__}", hint)


def _is_own(query: Query, alias: str | None) -> bool:
    """Whether it is the query's own table, or that of a parent of its model."""
    while alias is not None and isinstance(join := query.alias_map[alias], Join):
        if not getattr(getattr(join.join_field, "remote_field", None), "parent_link", False):
            return False
        alias = join.parent_alias
    return True


def refuse_sensitive(found: Loaded, patterns: Sequence[str]) -> None:
    """Raise NotExpressible if a sensitive column is loaded that nobody named."""
    for field in found.fields:
        if field.name in found.named or field.attname in found.named:
            continue
        if _is_sensitive(field, patterns):
            raise NotExpressible(
                f"the column {field.name!r} of {field.model._meta.label} is sensitive, and would be on every device",
                f"leave it out with defer({field.name!r}), or name it in only() or values() if that is meant "
                "(SENSITIVE_COLUMNS is the list)",
            )


def _is_sensitive(field: AnyField, patterns: Sequence[str]) -> bool:
    """A pattern with dots is for `app.model.field`, one without for the field's name."""
    label = f"{field.model._meta.label_lower}.{field.name.lower()}"
    return any(
        fnmatch.fnmatchcase(label if "." in pattern else field.name.lower(), pattern.lower()) for pattern in patterns
    )


def outputs(
    found: Loaded, model: type[models.Model], translator: QueryTranslator, printer: Printer, *, annotated: bool
) -> list[str]:
    """The select list for the table of a model or of one of its parents."""
    fields = [field for field in found.fields if field.model._meta.concrete_model is model._meta.concrete_model]
    listed = [_output(field, translator, printer) for field in fields]
    names = {str(field.column) for field in fields}
    if annotated:
        listed += [_annotation(name, found.annotations[name], translator, printer) for name in found.annotations]
        names |= found.annotations.keys()
    key = model._meta.pk
    if key.column == "id":
        return listed if "id" in names else [printer.value(_column(key, translator)), *listed]
    if "id" in names and isinstance(key, CompositePrimaryKey):
        return listed
    if "id" in names:
        raise NotExpressible(
            f"{model.__name__} has a column id that is not its primary key, and devices know rows by id",
            "leave it out with defer('id')",
        )
    if isinstance(key, CompositePrimaryKey):
        raise NotExpressible(
            f"{model.__name__} has a composite primary key, and devices know rows by one column id",
            "annotate(id=Concat(…)) with a text that is unique",
        )
    return [*listed, f"{printer.value(_column(key, translator))} AS id"]


def _column(field: AnyField, translator: QueryTranslator) -> Column:
    return Column(translator.scope.base, str(field.column), field.null)


def _output(field: AnyField, translator: QueryTranslator, printer: Printer) -> str:
    if getattr(field, "generated", False):
        hint = f"leave it out with defer({field.name!r}), and compute it on the device"
        raise NotExpressible(f"{field.name} is a generated column, which is not replicated", hint)
    name = printer.value(_column(field, translator))
    if field.get_internal_type() != "BinaryField":
        return name
    encoded = f"base64({name})"
    return f"{f'CASE WHEN {name} IS NOT NULL THEN {encoded} END' if field.null else encoded} AS {name}"


def _annotation(name: str, expression: Any, translator: QueryTranslator, printer: Printer) -> str:
    try:
        value = translator.value(expression)
        _refuse_foreign(value, translator)
    except NotExpressible as error:
        error.lookup = f"annotate({name}=…)"
        raise
    return f"{printer.value(value.value)} AS {quoted(name)}"


def _refuse_foreign(value: Typed, translator: QueryTranslator) -> None:
    if mentions(value.value) - {translator.scope.base}:
        raise NotExpressible(
            "what is synced of a row comes from its own table, and is the same for everybody",
            "use alias() for what only conditions need",
        )
    if value.kind is Kind.DECIMAL and not isinstance(value.value, Column):
        raise NotExpressible("a decimal number that is computed loses its digits", "compute it on the device")
