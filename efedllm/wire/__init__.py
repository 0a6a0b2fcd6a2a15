"""Frames, their typed bodies and the connection that carries them between clients and nodes."""

from efedllm.wire.connection import WS_PATH, Peer, PeerLimits, PeerStats, accept, connect, ws_url
from efedllm.wire.frames import MAX_FRAME, Frame, FrameType
from efedllm.wire.handshake import Identity, Remote, handshake
from efedllm.wire.messages import parse

__all__ = [
    "MAX_FRAME",
    "WS_PATH",
    "Frame",
    "FrameType",
    "Identity",
    "Peer",
    "PeerLimits",
    "PeerStats",
    "Remote",
    "accept",
    "connect",
    "handshake",
    "parse",
    "ws_url",
]
