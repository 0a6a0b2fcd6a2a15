"""Fixtures of the tests that start parts of a network."""

from tests.model_fixtures import default_model

__all__ = ["default_model"]
