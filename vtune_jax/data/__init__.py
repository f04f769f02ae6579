"""Corpora, tokens and the mixture: which rows a step trains on, and how they reach it."""
