"""PostGIS values (EWKB, as hex text or blob) as GeoJSON and WKT.

https://postgis.net/docs/using_postgis_dbmanagement.html#EWKB_EWKT
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import orjson

from ..exceptions import EvaluationError
from .expressions import SqliteValue
from .values import real_text

_HAS_Z, _HAS_M, _HAS_SRID = 0x80000000, 0x40000000, 0x20000000
_NAMES = {
    1: "Point",
    2: "LineString",
    3: "Polygon",
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
}
_MAX_DEPTH = 16
Point = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Geometry:
    name: str
    parts: Any  # a point, points, rings of points, or geometries
    dimensions: str = ""  # those beyond x and y: Z, M or ZM


class _Reader:
    """Reads EWKB; the byte order is told anew by every geometry."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._order = data, 0, "<"

    def geometry(self, depth: int = 0) -> _Geometry:
        if depth > _MAX_DEPTH:
            raise EvaluationError("a geometry is nested too deeply")
        self._order = "<" if self._unpack("B") else ">"
        flags = self._unpack("I")
        if flags & _HAS_SRID:
            self._unpack("I")
        dimensions = "Z" * bool(flags & _HAS_Z) + "M" * bool(flags & _HAS_M)
        kind = flags & 0xFF
        if kind not in _NAMES:
            raise EvaluationError(f"geometries of kind {kind} are not supported")
        return _Geometry(_NAMES[kind], self._parts(kind, 2 + len(dimensions), depth), dimensions)

    def _parts(self, kind: int, size: int, depth: int) -> Any:
        match kind:
            case 1:
                return self._point(size)
            case 2:
                return self._points(size)
            case 3:
                return [self._points(size) for _ in range(self._count())]
            case _:
                return [self.geometry(depth + 1) for _ in range(self._count())]

    def _points(self, size: int) -> list[Point]:
        return [self._point(size) for _ in range(self._count())]

    def _point(self, size: int) -> Point:
        values = struct.unpack_from(f"{self._order}{size}d", self._data, self._at)
        self._at += 8 * size
        return values

    def _count(self) -> int:
        return self._unpack("I")

    def _unpack(self, kind: str) -> int:
        (value,) = struct.unpack_from(self._order + kind, self._data, self._at)
        self._at += 1 if kind == "B" else 4
        return int(value)


def _parse(value: SqliteValue) -> _Geometry | None:
    if not isinstance(value, str | bytes):
        return None
    try:
        return _Reader(bytes.fromhex(value) if isinstance(value, str) else value).geometry()
    except (ValueError, struct.error):
        raise EvaluationError("a value is not a PostGIS geometry") from None


def st_x(value: SqliteValue) -> float | None:
    """The x of a point; NULL for other geometries."""
    return _coordinate(value, 0)


def st_y(value: SqliteValue) -> float | None:
    """The y of a point; NULL for other geometries."""
    return _coordinate(value, 1)


def _coordinate(value: SqliteValue, index: int) -> float | None:
    geometry = _parse(value)
    if geometry is None or geometry.name != "Point":
        return None
    coordinate: float = geometry.parts[index]
    return None if coordinate != coordinate else coordinate


def st_asgeojson(value: SqliteValue) -> str | None:
    """GeoJSON (RFC 7946), which knows no measures (M)."""
    geometry = _parse(value)
    return None if geometry is None else orjson.dumps(_geojson(geometry)).decode()


def _geojson(geometry: _Geometry) -> dict[str, Any]:
    if geometry.name == "GeometryCollection":
        return {"type": geometry.name, "geometries": [_geojson(part) for part in geometry.parts]}
    return {"type": geometry.name, "coordinates": _coordinates(geometry)}


def _coordinates(geometry: _Geometry) -> Any:
    size = 3 if "Z" in geometry.dimensions else 2
    match geometry.name:
        case "Point":
            return [] if _is_empty(geometry) else geometry.parts[:size]
        case "LineString":
            return [point[:size] for point in geometry.parts]
        case "Polygon":
            return [[point[:size] for point in ring] for ring in geometry.parts]
        case _:
            return [_coordinates(part) for part in geometry.parts]


def _is_empty(point: _Geometry) -> bool:
    """POINT EMPTY has NaN for coordinates."""
    return bool(point.parts[0] != point.parts[0])


def st_astext(value: SqliteValue) -> str | None:
    """Well-known text without SRID, e.g. `POINT(1 2)`."""
    geometry = _parse(value)
    return None if geometry is None else _wkt(geometry)


def _wkt(geometry: _Geometry) -> str:
    body = _wkt_body(geometry)
    name = f"{geometry.name.upper()} {geometry.dimensions} " if geometry.dimensions else geometry.name.upper()
    return f"{name}{body}" if body else f"{name.rstrip()} EMPTY"


def _wkt_body(geometry: _Geometry) -> str:
    match geometry.name:
        case "Point":
            return "" if _is_empty(geometry) else f"({_wkt_point(geometry.parts)})"
        case "LineString":
            return _wkt_points(geometry.parts)
        case "Polygon":
            return _listed(_wkt_points(ring) for ring in geometry.parts)
        case "GeometryCollection":
            return _listed(_wkt(part) for part in geometry.parts)
        case "MultiPoint":
            return _listed(_wkt_point(part.parts) for part in geometry.parts)
        case _:
            return _listed(_wkt_body(part) or "EMPTY" for part in geometry.parts)


def _wkt_points(points: list[Point]) -> str:
    return _listed(_wkt_point(point) for point in points)


def _wkt_point(point: Point) -> str:
    return " ".join(real_text(value) for value in point)


def _listed(parts: Any) -> str:
    text = ",".join(parts)
    return f"({text})" if text else ""
