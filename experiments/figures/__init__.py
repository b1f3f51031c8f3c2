"""Plots of the documentation, each with its data."""
