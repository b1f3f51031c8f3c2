"""Policy optimization on problems small enough to be exact: each module is an experiment, with its plot and its data.

An experiment is found by its file. It has sizes `SHORT` for a trial of seconds, a function `rows`, which takes sizes by
name and returns the rows of its table, and a function `plot` from that table to a canvas.
"""
