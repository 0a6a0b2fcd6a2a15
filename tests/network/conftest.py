"""Fixtures of the tests that start several processes."""

from tests.model_fixtures import bundled_model, checkpoint, default_model, published

__all__ = ["bundled_model", "checkpoint", "default_model", "published"]
