"""hydra/launcher=slurm: the plugin's launcher of job arrays, for cells that may be finished, fail, or die."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf

from hydra_plugins.svdexp_sweeps.launching import Cell, launch_unfinished, log
from svdexp.runtime.errors import UserError, require

# Seconds between two questions to SLURM whether a job is alive; submitit's own grow to ten minutes. Results that are
# there are seen at once.
POLL = 30


class Slurm(SlurmLauncher):  # type: ignore[misc]
    """One job for each cell that is not finished; a job that dies is a failed cell, and the others are waited for."""

    def __call__(self, sweep_overrides: list[str], *place: Any) -> JobReturn:
        """The cell, in its job, or one of the processes that share it."""
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:  # what torchrun would say to them
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        sys.argv[1:] = sweep_overrides  # for trackers, instead of submitit's own
        done: JobReturn = super().__call__(sweep_overrides, *place)
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The outcomes of all cells, when the last job has ended."""
        setup = {"config": self.config, "hydra_context": self.hydra_context, "task_function": self.task_function}
        return launch_unfinished(setup, job_overrides, initial_job_idx, self.submit)

    def submit(self, cells: list[Cell]) -> list[JobReturn]:
        """The outcomes of one job array."""
        import submitit  # Hydra imports this module at every start

        require(shutil.which("sbatch") is not None, "hydra/launcher=slurm: there is no sbatch on this machine's PATH")
        params = dict(self.params)
        folder, timeouts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        shared = OmegaConf.structured(BaseQueueConf).keys()
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": params[key] for key in params})
        state = Singleton.get_state()
        calls = [(cell.overrides, "hydra.sweep.dir", cell.number, str(cell.number), state) for cell in cells]
        try:
            jobs = executor.map_array(self, *zip(*calls, strict=True))
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"hydra/launcher=slurm: sbatch refuses the jobs: {error}") from error
        for cell, job in zip(cells, jobs, strict=True):
            log.info("job %s: %s", job.job_id, cell.folder)
        return [outcome(cell, job) for cell, job in zip(cells, jobs, strict=True)]


def outcome(cell: Cell, job: Any) -> JobReturn:
    """What became of a cell, once its job has ended."""
    import submitit

    try:
        seconds = 0
        while not job.done(force_check=seconds % POLL == POLL - 1):
            time.sleep(1)
            seconds += 1
        found: JobReturn = job.results()[0]
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
        reason = f"job {job.job_id} ended without a result, in state {job.state}; see {job.paths.stderr}"
        log.error("%s: %s", cell.folder, reason)
        return cell.lost(reason)
    return found
