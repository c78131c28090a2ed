"""Uploads: a device's local transactions, each applied to the backend exactly once, by the developer's handler.

For each local transaction there is one database transaction, which holds its writes and its line of the journal.
A device sends again what it got no answer to; the journal then gives the first answer, and nothing is written. What
cannot be applied is rejected: rolled back, kept as a dead letter, answered with codes and field errors, and the queue
goes on. This package knows nothing of HTTP (see views.py), so that tests and commands can run a handler.
"""

from ..exceptions import OperationDeferred, OperationRejected
from .conflicts import Conflict
from .context import OperationRequest
from .dead_letters import dismiss, retry
from .handler import RejectionScope, UploadHandler, get_handler
from .tables import MISSING_ROW, UploadTable
from .viewsets import ViewSetTable

__all__ = [
    "MISSING_ROW",
    "Conflict",
    "OperationDeferred",
    "OperationRejected",
    "OperationRequest",
    "RejectionScope",
    "UploadHandler",
    "UploadTable",
    "ViewSetTable",
    "dismiss",
    "get_handler",
    "retry",
]
