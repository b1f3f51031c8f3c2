"""Modules that the classical experiments share."""
