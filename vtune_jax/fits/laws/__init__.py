"""Scaling laws, one file each, and what they share."""
