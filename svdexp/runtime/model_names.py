"""What a model is called that nobody gave a name: after the folder, hub id or file that it comes from."""

import os
from pathlib import Path

CHECKPOINT = "checkpoint"  # the folder of a run directory that holds its model; the run has the telling name


def name_of(path: str, name: str = "", its_path: str = "") -> str:
    """The name of the model at `path`: `name`, if that is what `its_path` is called, else the path's last component.

    conf/model/ names models with this, as ${name_of:PATH NOW,NAME,PATH OF THAT NAME}, so that another path never bears
    the name of the model that it replaced. Of a GGUF file the last component goes without `.gguf`.
    """
    if name and path == its_path:
        return name
    parts = path.rpartition("://")[2].rstrip("/").split("/")
    if set(parts[-1]) <= {"."} or parts[-1].startswith("~"):  # the folder that `.`, `..` or `~` stands for
        parts = os.path.abspath(Path(path).expanduser()).split("/")  # noqa: PTH100 - resolve() would follow a link
    if parts[-1] == CHECKPOINT and len(parts) > 1:
        parts.pop()
    return parts[-1].removesuffix(".gguf")
