"""Evidence that some methods need beside losses: one file for each kind."""
