"""The experiment as one frozen value, and its arms."""
