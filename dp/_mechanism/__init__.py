"""The private mechanism: clipped sums of a batch, and their noised release."""
