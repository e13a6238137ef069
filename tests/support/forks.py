"""Work in a forked process, which may be killed, or be without rights, descriptors or room on disk."""

import os
import traceback
from collections.abc import Callable


def in_a_process(work: Callable[[], object]) -> Callable[[], int]:
    """Start `work` in a process; what is returned waits for its end: the exit code, or the signal, negative."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
