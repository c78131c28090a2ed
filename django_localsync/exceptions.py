"""Every error that django_localsync raises on purpose.

    LocalSyncError
    ├── ConfigurationError      a setting or the server's set-up is wrong; the message names the way out
    │   └── RulesError          the sync rules cannot be compiled; carries definition, line and column
    ├── ProtocolError           bytes from a peer break a protocol
    ├── RequestError            a client's request is refused; carries HTTP status and PSYNC code
    │   ├── AuthError           401: the token is absent, malformed, expired or not acceptable
    │   └── LimitExceeded       a client asks for more than the limits allow
    ├── OperationRejected       an uploaded operation is refused for good; carries a code and field errors
    ├── OperationDeferred       an uploaded operation cannot be applied now; the device's queue waits
    ├── EvaluationError         one row cannot be evaluated; the row is left out and reported
    └── ReplicationError        the replicator cannot go on as it is
        ├── SlotLost            the slot cannot serve the position we need
        └── LeadershipLost      another replicator writes this storage now

A class per decision that a caller can take. `code` is stable (and sent on the wire where there is one).
"""

from __future__ import annotations

from collections.abc import Sequence


class LocalSyncError(Exception):
    """Base of all errors of this package."""

    code = "error"


class ConfigurationError(LocalSyncError):
    """A setting, or the server's own set-up, must be changed by a developer or an administrator."""

    code = "configuration"


class RulesError(ConfigurationError):
    """The sync rules cannot be compiled.

    `definition` is the name of the stream or bucket definition at fault (None: the document as a whole);
    `line` and `column` count from 1 in the YAML text (None when the rules came as a dict); `hint` is the way out.
    `all` are the errors of the document, this one first.
    """

    code = "rules"

    def __init__(
        self,
        message: str,
        *,
        definition: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.definition, self.line, self.column, self.hint = (
            message,
            definition,
            line,
            column,
            hint,
        )
        self.all: tuple[RulesError, ...] = (self,)
        where = [f"{definition!r}"] if definition else []
        if line is not None:
            where.append(f"line {line}" + (f", column {column}" if column is not None else ""))
        super().__init__(f"{' '.join(where)}: {message}" if where else message)

    @classmethod
    def of(cls, errors: Sequence[RulesError]) -> RulesError:
        """The first of several errors of one document, which knows all of them."""
        errors[0].all = tuple(errors)
        return errors[0]


class ProtocolError(LocalSyncError):
    """A peer sent bytes that break the protocol; the connection cannot be continued."""

    code = "protocol"


class RequestError(LocalSyncError):
    """A client's request is refused: `status` is the HTTP status, `code` the wire's PSYNC code.

    The text goes to the client as it is, so it must never hold a token or internals.
    """

    code = "PSYNC_S2001"

    def __init__(
        self, description: str, *, status: int = 400, code: str | None = None, details: str | None = None
    ) -> None:
        self.description, self.status, self.details = description, status, details
        if code is not None:
            self.code = code
        super().__init__(description)


class AuthError(RequestError):
    """401: the token is absent, malformed, expired or not acceptable."""

    code = "PSYNC_S2101"

    def __init__(self, description: str, *, code: str | None = None, details: str | None = None) -> None:
        super().__init__(description, status=401, code=code, details=details)


class LimitExceeded(RequestError):
    """The client asks for more buckets, bytes or connections than the limits allow."""

    code = "PSYNC_S2305"


class OperationRejected(LocalSyncError):
    """An uploaded operation is refused for good: an answer to the device, not a failure.

    Raised by upload tables and by a project's own hooks. `code` is stable and sent to the device; `errors` is a
    message, a list of messages, or field → messages. `op_id` is the operation at fault; None means the one that is
    being applied, or all of the local transaction.
    """

    def __init__(self, code: str, errors: object, *, op_id: int | None = None) -> None:
        self.code, self.errors, self.op_id = code, errors, op_id
        super().__init__(f"{code}: {errors}")


class OperationDeferred(LocalSyncError):
    """An uploaded operation cannot be applied now. Its local transaction is undone, and the device sends it again.

    Raised by a project's hooks where something must happen first: nothing later in the queue is looked at. Code and
    errors are as OperationRejected's, and are told to the device.
    """

    code = "deferred"

    def __init__(self, code: str = "deferred", errors: object = (), *, op_id: int | None = None) -> None:
        self.code, self.errors, self.op_id = code, errors or "Not now.", op_id
        super().__init__(f"{code}: {errors}")


class EvaluationError(LocalSyncError):
    """A row (or one of its lookups) cannot be evaluated; it is left out, and replication goes on."""

    code = "evaluation"


class ReplicationError(LocalSyncError):
    """The replicator cannot go on as it is."""

    code = "replication"


class SlotLost(ReplicationError):
    """The slot cannot serve the position we need; the replicator copies again by itself."""

    code = "slot_lost"

    def __init__(self, slot: str, reason: str) -> None:
        self.slot, self.reason = slot, reason
        super().__init__(
            f"slot {slot!r} cannot be continued ({reason}); a new copy begins; "
            "if this recurs, raise max_slot_wal_keep_size"
        )


class LeadershipLost(ReplicationError):
    """Another replicator writes this storage now; this one stands by."""

    code = "leadership_lost"
