"""Types as the vectors name them: `int4[]`, `domain counter over int4`, `composite stay(place text, ok bool)`."""

from __future__ import annotations

import re

from django_localsync.pgoutput.types import Member, PgType, TypeKind

ADDRESS = "composite address(street text, number int4, geo point)"


def labelled(label: str) -> PgType:
    """The type a label means. `composite address` without members is the one that other vectors spell out."""
    if label.endswith("[]"):
        return array_of(labelled(label[:-2] if label != "composite address[]" else ADDRESS))
    if match := re.fullmatch(r"domain (\w+) over (\w+)", label):
        return domain(match[1], PgType.named(match[2]))
    if match := re.fullmatch(r"domain (\w+) \(.*float8\)", label):
        return domain(match[1], PgType.named("float8"))
    if label == "domain counter":
        return domain("counter", PgType.named("int4"))
    if match := re.fullmatch(r"enum (\w+)", label):
        return PgType(match[1], TypeKind.ENUM, "public")
    if match := re.fullmatch(r"composite (\w+)\((.*)\)", label):
        members = [member.split() for member in match[2].split(", ")]
        return composite(match[1], **{name: PgType.named(type_name) for name, type_name in members})
    assert " " not in label, f"unknown label {label!r}"
    return PgType.named(label)


def array_of(element: PgType) -> PgType:
    """The array type that comes with a type."""
    return PgType(f"_{element.name}", TypeKind.ARRAY, element.schema, element=element)


def domain(name: str, base: PgType) -> PgType:
    """A user's domain."""
    return PgType(name, TypeKind.DOMAIN, "public", element=base)


def composite(name: str, **members: PgType) -> PgType:
    """A user's composite type."""
    return PgType(name, TypeKind.COMPOSITE, "public", members=tuple(Member(*member) for member in members.items()))
