"""Reads types from the catalogue of a source."""

from __future__ import annotations

from collections.abc import Collection

from ..pgoutput.types import PgType, PgTypeRow, types_from_rows
from ..storage.connections import Connection

# An array is what its element's typarray names: other types with an element (point, int2vector) print otherwise.
TYPES = """
    WITH RECURSIVE wanted (oid) AS (
        SELECT unnest(%(oids)s::bigint[]::oid[])
         UNION
        SELECT part.oid
          FROM wanted JOIN pg_type AS type ON type.oid = wanted.oid
          CROSS JOIN LATERAL (
                SELECT element.oid FROM pg_type AS element
                 WHERE element.oid = type.typelem AND element.typarray = type.oid
                UNION ALL SELECT type.typbasetype WHERE type.typtype = 'd'
                UNION ALL SELECT rngsubtype FROM pg_range WHERE rngtypid = type.oid
                UNION ALL SELECT rngtypid FROM pg_range WHERE rngmultitypid = type.oid
                UNION ALL SELECT atttypid FROM pg_attribute
                           WHERE attrelid = type.typrelid AND attnum > 0 AND NOT attisdropped) AS part
    )
    SELECT type.oid::bigint, namespace.nspname, type.typname,
           CASE WHEN element.oid IS NOT NULL THEN 'array'
                ELSE coalesce('{"e":"enum","d":"domain","c":"composite","r":"range","m":"multirange"}'::json
                              ->> type.typtype::text, 'base') END,
           coalesce(element.oid, nullif(type.typbasetype, 0), range.rngsubtype, multirange.rngtypid)::bigint,
           type.typdelim::text,
           coalesce((SELECT json_agg(json_build_array(attname, atttypid::bigint) ORDER BY attnum)
                       FROM pg_attribute
                      WHERE attrelid = type.typrelid AND attnum > 0 AND NOT attisdropped), '[]'),
           coalesce((SELECT json_agg(format('%%s label %%s %%s', type.oid, label.oid, to_json(enumlabel)))
                       FROM pg_enum AS label WHERE enumtypid = type.oid),
                    (SELECT json_build_array(format('%%s attributes %%s', type.oid,
                            json_agg(json_build_array(attnum, attname, atttypid::bigint) ORDER BY attnum)::text))
                       FROM pg_attribute
                      WHERE attrelid = type.typrelid AND attnum > 0 AND NOT attisdropped HAVING count(*) > 0), '[]')
      FROM wanted
      JOIN pg_type AS type ON type.oid = wanted.oid
      JOIN pg_namespace AS namespace ON namespace.oid = type.typnamespace
      LEFT JOIN pg_type AS element ON element.oid = type.typelem AND element.typarray = type.oid
      LEFT JOIN pg_range AS range ON range.rngtypid = type.oid
      LEFT JOIN pg_range AS multirange ON multirange.rngmultitypid = type.oid
"""


def read_types(connection: Connection, oids: Collection[int]) -> dict[int, PgType]:
    """The types of these oids and all of their parts; a type that was dropped since is `PgType.unknown`."""
    rows = connection.execute(TYPES, {"oids": list(oids)})
    types = types_from_rows(PgTypeRow(*row) for row in rows)
    return {oid: types.get(oid) or PgType.unknown(oid) for oid in {*oids, *types}}
