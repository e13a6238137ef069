"""What a test's function needs to be one of two processes on this machine, joined by gloo."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState

from tests.support.warm import CONTEXT


def in_two(work: Callable[..., None], *arguments: Any) -> None:
    """`work(rank, port, *arguments)`, a module's function, in two processes at once; what one raises is raised."""
    method = CONTEXT.get_start_method()
    torch.multiprocessing.start_processes(work, (free_port(), *arguments), nprocs=2, start_method=method)


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
