"""Fixtures of the tests of the installed package."""

from tests.model_fixtures import default_model

__all__ = ["default_model"]
