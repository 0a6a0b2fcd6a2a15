"""Frames, their typed bodies and the connection that carries them between clients and nodes."""
