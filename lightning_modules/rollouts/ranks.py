"""What an engine that all ranks share needs of them; on one rank nothing happens."""

from __future__ import annotations

import torch
import torch.distributed as dist


def rank() -> int:
    """Number of this rank; 0 where there is only one."""
    return dist.get_rank() if _several() else 0


def wait_for_ranks(device: torch.device) -> None:
    """Return when every rank has got here."""
    if _several():
        arrived = torch.ones(1, device=device)
        dist.all_reduce(arrived)
        arrived.item()  # on a GPU the call above returns at once


def agreed_text(text: str, device: torch.device) -> str:
    """Rank 0's text, on every rank; sent as bytes, since torch would pickle an object."""
    if not _several():
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(content)], device=device)
    dist.broadcast(size, src=0)
    if rank() != 0:
        content = torch.zeros(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(content, src=0)
    return bytes(content.tolist()).decode()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
