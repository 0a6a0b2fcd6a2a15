"""Models to run the kernels in."""

from tests.model_fixtures import bundled_model, checkpoint, published

__all__ = ["bundled_model", "checkpoint", "published"]
