"""Objectives in other trainers; each module imports its trainer, so this package imports none of them."""

__all__: list[str] = []
