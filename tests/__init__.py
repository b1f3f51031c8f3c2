"""Tests; the folders mirror the packages, and `contracts` holds the laws."""
