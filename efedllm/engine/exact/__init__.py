"""The exact execution profile: the same bits on every machine. docs/exact.md specifies its arithmetic."""
