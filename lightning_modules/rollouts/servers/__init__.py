"""Rollouts by vLLM servers, seen from the trainer."""
