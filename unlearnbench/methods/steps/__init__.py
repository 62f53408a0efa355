"""Ways to make the gradient of an optimizer step from those of its terms, as SAM does."""
