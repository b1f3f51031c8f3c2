"""Objectives over denoising steps on the two-dimensional task, with seeds and intervals; see docs/flow.md."""
