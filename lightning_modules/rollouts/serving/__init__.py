"""vLLM server for rollouts, started by `aggregate-po serve`."""
