"""Random QuerySets over the library's models, random rows for them, and random requests."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from random import Random
from typing import Any

from django.contrib.auth.models import User
from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When
from django.db.models.functions import Cast, Coalesce, Concat, NullIf

from django_localsync.querysets import auth, connection, subscription
from django_localsync.querysets.expressions import user_model
from django_localsync.sync_rules.plan import RequestParameters, Subscription
from tests.library.models import Account, Crate, Document, Draft, Label, Membership, Person, Report, Team

KEYS = [uuid.UUID(int=number << 120 | number) for number in range(1, 40)]
TEXTS = ["a", "b", "ab", "ba", "B", "", "ä", "it's", "1"]
NUMBERS = [0, 1, 2, 3, -1]
REALS = [0.0, 0.5, 1.0, 2.25, -1.5]
PRICES = [Decimal("0.00"), Decimal("0.50"), Decimal("1.00"), Decimal("12.30"), Decimal("-2.00")]
DATES = [datetime.date(2024, 1, 1), datetime.date(2024, 12, 31), datetime.date(1999, 5, 6)]
TIMES = [datetime.time(0, 0), datetime.time(9, 30, 1, 5), datetime.time(23, 59, 59)]
MOMENTS = [
    datetime.datetime(2024, 1, 1, 3, tzinfo=datetime.UTC),
    datetime.datetime(2024, 6, 1, 12, 0, 0, 10, tzinfo=datetime.UTC),
    datetime.datetime(2024, 12, 31, 23, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=-3))),
]
ROLES = ["admin", "guest"]
ROOTS: list[Any] = [
    Document.objects, Document.everything, Document.everything, Draft.everything, Report.everything, Team.objects,
    Membership.objects, Label.objects, Crate.objects, Person.objects, Account.objects, User.objects,
]  # fmt: skip
WITHIN = {Document, Report, Team, Membership, Label, Crate, Person, Account, User}


# Rows


def fill(random: Random) -> None:
    """Random rows in all tables."""

    def maybe(values: list[Any]) -> Any:
        return random.choice([None, *values])

    users = User.objects.bulk_create(User(username=f"{name}{number}") for number, name in enumerate(TEXTS[:5]))
    people = Person.objects.bulk_create(
        Person(id=key, name=random.choice(TEXTS), number=number) for number, key in enumerate(KEYS[:4])
    )
    accounts = Account.objects.bulk_create(Account(handle=text, name=maybe(TEXTS)) for text in ("a", "b", "ab", "1"))
    teams: list[Team] = []
    for _ in range(7):
        team = Team(name=random.choice(TEXTS), owner=maybe(users), parent=maybe(teams), archived=random.random() < 0.4)
        team.save(force_insert=True)
        teams.append(team)
    Membership.objects.bulk_create(
        Membership(team=team, user=user, role=random.choice(ROLES), rank=maybe(NUMBERS))
        for team in teams
        for user in random.sample(users, random.randint(0, 3))
    )
    for team in teams:
        team.people.add(*random.sample(people, random.randint(0, 2)))
        team.accounts.add(*random.sample(accounts, random.randint(0, 2)))
    labels = Label.objects.bulk_create(
        Label(slug=text, team=maybe(teams), weight=random.choice(NUMBERS)) for text in ("a", "b", "ä", "it's")
    )
    documents = [
        document_class(
            id=key, team=random.choice(teams), author=maybe(users), person=maybe(people), by_number=maybe(people),
            account=maybe(accounts), loose_id=maybe([99_999, 99_998, *(team.pk for team in teams)]),
            title=random.choice(TEXTS),
            subtitle=maybe(TEXTS), stars=maybe(NUMBERS), views=random.choice(NUMBERS), ratio=maybe(REALS),
            price=maybe(PRICES), due=maybe(DATES), seen=maybe(MOMENTS), at=maybe(TIMES), token=maybe(KEYS[:3]),
            public=random.random() < 0.4, flag=maybe([True, False]),
            deleted_at=maybe([None, None, MOMENTS[0]]),
            **({"pages": maybe(NUMBERS), "reviewer": maybe(users)} if document_class is Report else {}),
        )
        for key, document_class in zip(KEYS[:22], [Document] * 16 + [Report] * 6, strict=True)
    ]  # fmt: skip
    Document.everything.bulk_create(item for item in documents if type(item) is Document)
    for document in documents:
        if isinstance(document, Report):
            document.save(force_insert=True)
        document.labels.add(*random.sample(labels, random.choice([0, 0, 1, 2])))
    Crate.objects.bulk_create(
        Crate(number=number, document=maybe(documents[:8]), keeper=maybe(users), weight=maybe(NUMBERS))
        for number in range(8)
    )


def requests(random: Random) -> list[RequestParameters]:
    """Some users with what their tokens and devices say."""
    keys = list(user_model()._default_manager.order_by("pk").values_list("pk", flat=True))
    return [_request(random, key) for key in random.sample(keys, min(3, len(keys)))]


def _request(random: Random, key: Any) -> RequestParameters:
    teams = list(Team.objects.values_list("pk", flat=True))

    def number(values: list[int]) -> Any:
        found = random.choice(values)
        return random.choice([found, str(found)])

    claims = {"sub": str(key), "word": random.choice(TEXTS), "number": number(NUMBERS), "role": random.choice(ROLES)}
    if random.random() < 0.2:
        del claims["word"]
    own = {"team": number(teams), "words": random.sample(TEXTS, 2), "numbers": random.sample(NUMBERS, 2)}
    return RequestParameters(
        {**claims, "is_admin": random.random() < 0.5, "level": random.choice(NUMBERS)},
        {"word": random.choice(TEXTS)},
        [Subscription("tested", {**own, "teams": [number(teams), number(teams)]})],
    )


# QuerySets


@cache
def relations(model: type[models.Model]) -> list[tuple[str, type[models.Model]]]:
    """The relations of a model, in both directions, by the names that lookups have for them."""
    found = []
    for field in model._meta.get_fields():
        if not field.is_relation or field.related_model not in WITHIN:
            continue
        if not field.name.endswith("+"):
            # Rarely right by chance: a foreign key that may lead nowhere.
            found += [(field.name, field.related_model)] * (4 if field.name == "loose" else 1)
    return found


@cache
def plain_fields(model: type[models.Model]) -> list[models.Field]:
    """Fields that hold values of their own."""
    return [
        field
        for field in model._meta.concrete_fields
        if not isinstance(field, models.BinaryField | models.JSONField) and field.name not in _PRIVATE
    ]


_PRIVATE = {"password", "last_login", "date_joined", "email", "first_name", "last_name", "is_staff", "is_superuser"}
_POOLS: list[tuple[type[models.Field], list[Any]]] = [
    (models.UUIDField, KEYS[:12]),
    (models.BooleanField, [True, False]),
    (models.DecimalField, PRICES),
    (models.FloatField, REALS),
    (models.IntegerField, NUMBERS),
    (models.DateTimeField, MOMENTS),
    (models.DateField, DATES),
    (models.TimeField, TIMES),
    (models.CharField, [*TEXTS, *ROLES]),
    (models.TextField, TEXTS),
]


class QuerySets:
    """Makes random QuerySets; `random` decides everything."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def queryset(self) -> models.QuerySet[Any]:
        """A QuerySet over one of the models, of which mostly the key is loaded."""
        found = self.random.choice(ROOTS).all()
        for _ in range(self.random.choice([1, 1, 1, 2, 2, 3])):
            step = self.random.random()
            if step < 0.2:
                found = self._computed(found)
            elif step < 0.38:
                found = found.exclude(self.condition(found.model))
            else:
                found = found.filter(self.condition(found.model))
        return found.only("pk")

    def condition(self, model: type[models.Model], depth: int = 0) -> Any:
        """A Q over a model, or an Exists."""
        kind = self.random.random()
        if depth < 2 and kind < 0.22:
            return self.condition(model, depth + 1) & self.condition(model, depth + 1)
        if depth < 2 and kind < 0.44:
            return self.condition(model, depth + 1) | self.condition(model, depth + 1)
        if kind < 0.5:
            return self._of_one_row(model)
        if kind < 0.56:
            return ~Q(self.condition(model, depth + 1))
        if depth < 2 and kind < 0.65:
            return Q(self._exists(model, depth))
        return self._leaf(model, depth)

    def _of_one_row(self, model: type[models.Model]) -> Q:
        """Two conditions on the same row of a relation."""
        name, related = self.random.choice(relations(model))
        fields = self.random.sample(plain_fields(related), 2)
        pairs = ((field, *self._lookup(field, model)) for field in fields)
        return Q(**{"__".join([name, field.attname, *lookup]): value for field, lookup, value in pairs})

    def _exists(self, model: type[models.Model], depth: int) -> Exists:
        name, related = self.random.choice(relations(model))
        inner, back = related._base_manager.all(), ways_back(model).get(name)
        field = model._meta.get_field(name)
        if back is not None:
            inner = inner.filter(**{back: OuterRef("pk")})
        elif isinstance(field, models.ForeignKey):
            inner = inner.filter(**{field.target_field.name: OuterRef(field.attname)})
        return Exists(inner if self.random.random() < 0.3 else inner.filter(self.condition(related, depth + 1)))

    def _path(self, model: type[models.Model]) -> tuple[list[str], type[models.Model]]:
        path: list[str] = []
        while self.random.random() < (0.55, 0.4, 0.25, 0)[len(path)]:
            name, model = self.random.choice(relations(model))
            path.append(name)
        return path, model

    def _leaf(self, model: type[models.Model], depth: int) -> Q:
        path, end = self._path(model)
        user = [name for name, related in relations(end) if related is user_model()]
        if user and self.random.random() < 0.5:
            return Q(**{"__".join([*path, self.random.choice(user)]): auth.user()})
        if end is user_model() and self.random.random() < 0.5:
            return Q(**{"__".join([*path, "pk"]): auth.user()})
        if self.random.random() < 0.12 and relations(end):
            name, related = self.random.choice(relations(end))
            kind = self.random.random()
            if kind < 0.5:
                return Q(**{"__".join([*path, name, "isnull"]): self.random.random() < 0.5})
            if depth < 2:
                inner = related._base_manager.filter(self.condition(related, depth + 1))
                return Q(**{"__".join([*path, name, "in"]): inner})
        if end is Team and self.random.random() < 0.15:
            value = self.random.choice(
                [("pk", subscription.parameter("team")), ("in", subscription.parameter("teams"))]
            )
            return Q(**{"__".join([*path, "pk", *value[:1]][: 1 + len(path) + (value[0] == "in")]): value[1]})
        field = self.random.choice(plain_fields(end))
        lookup, value = self._lookup(field, model)
        return Q(**{"__".join([*path, field.attname, *lookup]): value})

    def _lookup(self, field: models.Field, model: type[models.Model]) -> tuple[list[str], Any]:
        """A lookup for a field at the end of a path, with its value."""
        target = field
        while target.is_relation:
            target = target.target_field  # type: ignore[attr-defined]
        kind = self.random.random()
        if kind < 0.15 or target.__class__ not in _KNOWN:
            return ["isnull"], self.random.random() < 0.5
        if kind < 0.27:
            return ["exact"], F("__".join(self._alike(target, model)))
        if kind < 0.4 and (value := self._of_request(target)):
            return value
        values = next(pool for kind_of, pool in _POOLS if isinstance(target, kind_of))
        if isinstance(target, models.AutoField):
            values = list(target.model._base_manager.values_list("pk", flat=True))
        if kind < 0.55:
            return ["in"], self.random.sample([*values, None], min(3, len(values)))
        if field.is_relation:
            return ["exact"], self.random.choice(values)
        if isinstance(target, models.CharField | models.TextField) and kind < 0.7:
            return [self.random.choice(["contains", "startswith", "endswith"])], self.random.choice(TEXTS)
        if isinstance(target, models.DateField) and kind < 0.65:
            return ["year", self.random.choice(["exact", "gt", "gte", "lt", "lte"])], self.random.choice([1999, 2024])
        if kind < 0.85 and not isinstance(target, models.BooleanField | models.CharField | models.TextField):
            if kind < 0.58:
                return ["range"], sorted(self.random.choices(values, k=2))
            return [self.random.choice(["gt", "gte", "lt", "lte"])], self._sometimes_f(target, model, values)
        return ["exact"], self.random.choice(values)

    def _sometimes_f(self, target: models.Field, model: type[models.Model], values: list[Any]) -> Any:
        value = self.random.choice(values)
        if type(target) is models.IntegerField and issubclass(model, Document) and self.random.random() < 0.4:
            return F("views") + self.random.choice(NUMBERS)
        return value

    def _alike(self, target: models.Field, model: type[models.Model]) -> list[str]:
        """A path from the model to a field of the same type."""
        for _ in range(20):
            path, end = self._path(model)
            fields = [item for item in plain_fields(end) if item.get_internal_type() == target.get_internal_type()]
            if fields:
                return [*path, self.random.choice(fields).name]
        return ["pk"]

    def _of_request(self, target: models.Field) -> tuple[list[str], Any] | None:
        pick = self.random.choice
        if isinstance(target, models.CharField | models.TextField):
            return pick([
                (["exact"], auth.parameter("word")), (["exact"], auth.parameter("role")),
                (["exact"], connection.parameter("word")), (["in"], subscription.parameter("words")),
            ])  # fmt: skip
        if isinstance(target, models.IntegerField):
            return pick([(["exact"], auth.parameter("number")), (["in"], subscription.parameter("numbers"))])
        return None

    def _computed(self, found: models.QuerySet[Any]) -> models.QuerySet[Any]:
        """A condition on something computed."""
        model = found.model
        pick: Callable[[list[Any]], Any] = self.random.choice
        asked = [
            lambda: found.alias(asked_role=auth.parameter("role")).filter(asked_role=pick(ROLES)),
            lambda: found.alias(asked_role=auth.parameter("role")).exclude(asked_role=pick(ROLES)),
            lambda: found.filter(auth.parameter("is_admin", models.BooleanField())),
            lambda: found.alias(level=auth.parameter("level", models.IntegerField())).filter(level__gte=pick(NUMBERS)),
            lambda: found.alias(yes=Exists(model._base_manager.filter(pk=OuterRef("pk")))).filter(yes=True),
        ]
        numbers = [item.name for item in plain_fields(model) if item.null and type(item) is models.IntegerField]
        of_rows = [self._of_numbers(found, numbers[0])] * 4 if numbers else []
        if issubclass(model, Document):
            of_rows += [self._of_texts(found), lambda: found.annotate(q=Q(stars__gt=1)).filter(q=pick([True, False]))]
        return pick([*asked, *of_rows])()

    def _of_numbers(self, found: models.QuerySet[Any], name: str) -> Callable[[], models.QuerySet[Any]]:
        """A condition on a number that is computed and may be NULL."""
        pick, whole, model = self.random.choice, models.IntegerField(), found.model
        field, constant = F(name), Value(pick(NUMBERS))
        number = pick([
            lambda: Coalesce(name, constant), lambda: field + field, lambda: field * 2 - Value(1),
            lambda: NullIf(field, constant, output_field=whole),
            lambda: Case(When(self.condition(model, 9), then=constant), default=field, output_field=whole),
        ])  # fmt: skip
        computed = found.alias(n=number())
        lookup, value = pick(
            [("n", pick(NUMBERS)), ("n__gt", 1), ("n__lt", 2), ("n__in", [0, 1, 4]), ("n__range", (1, 4))]
        )
        return pick([lambda: computed.filter(**{lookup: value}), lambda: computed.exclude(**{lookup: value})])

    def _of_texts(self, found: models.QuerySet[Any]) -> Callable[[], models.QuerySet[Any]]:
        """A condition on a text that is computed."""
        pick, of_text = self.random.choice, models.TextField()
        text = pick([
            lambda: Concat("title", Value("-"), "subtitle", output_field=of_text),
            lambda: Coalesce("subtitle", "title", output_field=of_text), lambda: Cast("stars", of_text),
            lambda: Case(When(public=True, then="title"), default=Value("a"), output_field=of_text),
        ])  # fmt: skip
        computed, value = found.alias(t=text()), pick([*TEXTS, "a-", "a-b"])
        return pick([lambda: computed.filter(t=value), lambda: computed.exclude(t__startswith="a")])


_KNOWN = {
    models.UUIDField, models.BooleanField, models.DecimalField, models.FloatField, models.IntegerField,
    models.BigIntegerField, models.AutoField, models.DateTimeField, models.DateField, models.TimeField,
    models.CharField, models.TextField,
}  # fmt: skip


@cache
def ways_back(model: type[models.Model]) -> dict[str, str]:
    """For relations that the other side has a field of: their name → the name of the way back."""
    found = [field for field in model._meta.get_fields() if field.is_relation and not field.concrete]
    inside = [field for field in found if field.related_model in WITHIN and not field.name.endswith("+")]
    return {field.name: field.remote_field.name for field in inside}  # type: ignore[union-attr]
