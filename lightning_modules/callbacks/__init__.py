"""Lightning callbacks: checkpoints, metrics and report of the run folder, progress bars, early stopping."""
