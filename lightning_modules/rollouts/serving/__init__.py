"""The vLLM server that answers the trainer, started by `aggregate-po serve`."""
