"""Channels consumers: sync streams over HTTP, and as RSocket over WebSocket; what waits as long as they do; probes."""

from .http import SyncStreamConsumer
from .probes import LivenessConsumer, ReadinessConsumer, StartupConsumer
from .receipt import WriteCheckpointConsumer
from .websocket import RefuseSocket, SyncSocketConsumer

__all__ = [
    "LivenessConsumer",
    "ReadinessConsumer",
    "RefuseSocket",
    "StartupConsumer",
    "SyncSocketConsumer",
    "SyncStreamConsumer",
    "WriteCheckpointConsumer",
]
