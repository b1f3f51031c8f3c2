"""Policies small enough to enumerate, and the exact gradients and estimators of every objective on them."""
