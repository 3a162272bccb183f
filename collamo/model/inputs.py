"""What the model takes, by name: what processor and feature extractor return."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature


class ModelInputs(BatchFeature):
    """A `BatchFeature` whose coordinates stay float32, whatever it is cast to."""

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Move every tensor, and cast the others of floating point.

        In bfloat16 a coordinate of 10 Å would be known to 0.03 Å. Takes what `torch.Tensor.to`
        does, and returns self, as `BatchFeature.to` does.
        """
        coordinates = self.data.get("coordinates")
        super().to(*args, **kwargs)
        if coordinates is not None:
            self.data["coordinates"] = coordinates.to(self.data["coordinates"].device)
        return self
