"""Streams from QuerySets: `Stream`, and what of the request they may ask: `auth`, `connection`, `subscription`.

    from django_localsync.querysets import Stream, auth

    streams = [Stream(Todo.objects.filter(list__members=auth.user()), name="todos", auto_subscribe=True)]

A QuerySet is translated to the SQL of streams, from which everything else follows. The guide is
docs/howto/querysets.md.
"""

from .expressions import auth, connection, evaluated_for, subscription
from .streams import Stream, is_dotted_path, rules_document

__all__ = ["Stream", "auth", "connection", "evaluated_for", "is_dotted_path", "rules_document", "subscription"]
