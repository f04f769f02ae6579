"""The command `vtune-jax`: a file per verb."""
