"""Tests of the Lightning modules, on a model of two small layers."""
