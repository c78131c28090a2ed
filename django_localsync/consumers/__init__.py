"""Channels consumers: sync streams over HTTP, and as RSocket over WebSocket; and what waits as long as they do."""

from .http import SyncStreamConsumer
from .receipt import WriteCheckpointConsumer
from .websocket import RefuseSocket, SyncSocketConsumer

__all__ = ["RefuseSocket", "SyncSocketConsumer", "SyncStreamConsumer", "WriteCheckpointConsumer"]
