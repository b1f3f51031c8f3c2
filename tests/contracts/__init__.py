"""Properties of every aggregator, transform, normalizer, penalty and recipe."""
