"""W&B's real client as somebody meets it who never used it."""

import os
from pathlib import Path

import pytest


def forget_wandb(monkeypatch: pytest.MonkeyPatch, home: Path, folder: Path) -> None:
    """Let nothing of W&B's be in the environment, in `home`, or in the working folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(folder)
