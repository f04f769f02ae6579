"""Training: the pure step, and the loop with its effects."""
