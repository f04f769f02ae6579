"""Mixtures proposed from runs at random mixtures: RegMix, mixing laws, olmix."""
