"""Ratio transforms: what happens to a log ratio before or after the mean."""

from aggregate_po.transforms.base import RatioTransform
from aggregate_po.transforms.clip import LogPessimisticClip, OneSidedClip, PessimisticClip, TrajectoryLogClip

__all__ = ["LogPessimisticClip", "OneSidedClip", "PessimisticClip", "RatioTransform", "TrajectoryLogClip"]
