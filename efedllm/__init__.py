"""What all roles of the eFedLLM network share. Imports no role."""

__version__ = "0.1.0"
