"""The study: what the mean and the clip each do to training, with seeds and intervals; see docs/study.md."""
