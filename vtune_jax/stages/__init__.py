"""The chain from corpora to report, each link cached by what it depends on."""
