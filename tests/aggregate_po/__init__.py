"""Oracles: numbers worked by hand, one file per module of the core."""
