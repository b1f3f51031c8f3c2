"""From prompts to micro-batches: sampling, advantages, optimizer steps, evaluation."""
