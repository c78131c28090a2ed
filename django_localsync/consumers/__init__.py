"""Sync streams as Channels consumers: over HTTP, and as RSocket over WebSocket."""

from .http import SyncStreamConsumer
from .websocket import RefuseSocket, SyncSocketConsumer

__all__ = ["RefuseSocket", "SyncSocketConsumer", "SyncStreamConsumer"]
