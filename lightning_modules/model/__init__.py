"""The policy as a model: loading, log-probabilities, layouts, adapters, sharding."""
