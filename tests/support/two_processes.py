"""What a test's function needs to be one of two processes on this machine, joined by gloo."""

import os
import socket

import torch
from accelerate import PartialState


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def join_two(rank: int, port: int) -> None:
    """Become process `rank` of two."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    PartialState(cpu=True)
