"""Recordings: the rollouts of a job with everything that its training steps computed, to be compared offline."""

from lightning_modules.recordings.manifest import Manifest, StepEntry
from lightning_modules.recordings.recorder import RolloutRecorder
from lightning_modules.recordings.recording import Recording
from lightning_modules.recordings.steps import RecordedBatch, RecordedStep
from lightning_modules.recordings.writer import RecordingWriter

__all__ = [
    "Manifest",
    "RecordedBatch",
    "RecordedStep",
    "Recording",
    "RecordingWriter",
    "RolloutRecorder",
    "StepEntry",
]
