"""Lightning callbacks: the run folder, its checkpoints and metrics, progress, early stopping."""
