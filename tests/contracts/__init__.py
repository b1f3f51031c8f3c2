"""Laws that every aggregator, transform, normaliser, penalty and recipe obeys."""
