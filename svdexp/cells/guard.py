"""What the commands share: how a mistake becomes one line on standard error and exit code 1."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from svdexp.cells import HeldError, OccupiedError, carry_out, note_failure, register_names
from svdexp.cells.choices import config_dir as config_dir
from svdexp.cells.mistakes import KNOWN, as_mistake, one_sentence
from svdexp.cells.page import listing, page
from svdexp.cells.traces import is_dry, one_dry_run, remove_traces
from svdexp.record import RESULTS
from svdexp.runtime.disk import UnwritableError
from svdexp.runtime.errors import UserError
from svdexp.runtime.interruption import interruptible
from svdexp.runtime.invocation import same_again, shown
from svdexp.runtime.masking import as_given, masked_words
from svdexp.runtime.reading import read_object
from svdexp.runtime.version import __version__
from svdexp.schema import Config, EvaluateConfig, ExportConfig

log = logging.getLogger("svdexp")

CONFIGS: dict[type, str] = {Config: "config", EvaluateConfig: "evaluate", ExportConfig: "export"}  # by their schemas
BUSY = os.EX_TEMPFAIL  # exit code of a single run whose folder another process holds

AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)


def guarded(
    cfg: DictConfig,
    check: Callable[[DictConfig], AnyConfig],
    work: Callable[[AnyConfig, Path], object],
    complete: Callable[[AnyConfig, Path], object] | None = None,
) -> object:
    """One of Hydra's jobs in its run directory: check the configuration, then carry out the cell.

    A dry run leaves no folder, and returns what its `work` gives.

    Args:
        cfg: the composed configuration.
        check: makes a checked one of it.
        work, complete: as `carry_out` takes them.

    Raises:
        UserError: in a sweep, for whatever went wrong; the sweep goes on with its other cells.
        KeyboardInterrupt: says what is kept.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    dry = False
    sys.argv[1:] = masked_words(sys.argv[1:])  # Hydra has read it; from here on it is only told to records and trackers
    try:
        refuse_half_a_sweep()
        refuse_two_sizes(as_given(HydraConfig.get().overrides.task))
        if dry := is_dry(cfg):
            remove_traces(folder)
        config = check(cfg)
        if dry:
            return work(config, folder)

        def begin(config: AnyConfig, folder: Path) -> object:
            """The work, once the folder is the run's own: its log is there."""
            log.info("%s, in %s", what(config), shown(folder))
            return work(config, folder)

        carry_out(cfg, config, folder, begin, complete)
        return None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*kept(cfg)) from None
    except Exception as raised:
        error = as_mistake(raised)
        if not dry and not sibling() and not isinstance(error, OccupiedError):
            with suppress(UnwritableError):
                note_failure(folder, error, one_sentence(error))
        if os.environ.get("SVDEXP_DEBUG"):
            raise
        # A single run ends here, before Hydra adds lines of its own.
        if HydraConfig.get().mode is RunMode.RUN:
            if not isinstance(error, UserError):
                raise
            end(error)
        log.error("%s", one_sentence(error), exc_info=None if isinstance(error, UserError) else error)
        failure = error if isinstance(error, HeldError) else UserError(one_sentence(error))
    # Raised here, not above: the error's traceback would keep the model's tensors alive as long as the sweep lasts.
    raise failure.with_traceback(None)


def what(config: Config | EvaluateConfig) -> str:
    """What is begun, in a few words."""
    if isinstance(config, Config):
        size = f"ratio {config.ratio:g}" if config.bytes is None else config.bytes
        size = size if config.ppl is None else f"{config.ppl} the dense perplexity"
        return f"svdexp {__version__}: {config.model.name} by {config.method.name} to {size}"
    return f"svdexp {__version__}: {config.model.name} measured by eval={config.eval.name}"


def refuse_half_a_sweep() -> None:
    """Raise UserError for a single run of a configuration that is a sweep, unless every swept key has its value."""
    hydra = HydraConfig.get()
    swept = hydra.sweeper.get("params") or {}
    overrides = OverridesParser.create().parse_overrides(as_given(hydra.overrides.task))
    given = {override.get_key_element() for override in overrides}
    open_keys = [key for key in swept if key not in given]
    if hydra.mode is RunMode.RUN and open_keys:
        chosen = hydra.runtime.choices.get("experiment")
        name = f"experiment={chosen}" if chosen else "this configuration"
        raise UserError(f"{name} is a sweep: add -m, or give one value for each of {', '.join(open_keys)}")


def refuse_two_sizes(words: Sequence[str]) -> None:
    """Raise UserError where a command line, or a cell's, says in two ways how small the model shall be."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    given = {override.get_key_element(): override for override in overrides}
    named = [key for key in ("ratio", "bytes", "ppl") if key in given and given[key].value() is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both say how small the model shall be: give one of them")


def kept(cfg: DictConfig) -> list[str]:
    """What an interrupted job leaves for the next start, and the line that starts it."""
    cache = OmegaConf.select(cfg, "cache")
    if sibling():
        return []
    alone = HydraConfig.get().mode is RunMode.RUN and int(os.environ.get("WORLD_SIZE", "1")) == 1
    words = [f"finished stages are in {cache} and will be reused"] if cache else []
    if alone:  # a sweep, and what started several processes, have a line of their own
        again = same_again(sys.argv[1:], Path(HydraConfig.get().runtime.output_dir), "hydra.run.dir")
        words.append(f"the run goes on with\n  {again}")
    return words


def objective(cfg: DictConfig) -> float | None:
    """The figure of the finished run that the configuration names, for a sweeper that searches."""
    key = cfg.objective
    if key is None or is_dry(cfg) or sibling():
        return None
    results = read_object(Path(HydraConfig.get().runtime.output_dir) / RESULTS)
    if not isinstance(results.get(key), int | float):
        error = UserError(f"objective={key} is no figure in the run's results.json")
        if HydraConfig.get().mode is RunMode.RUN:
            end(error)
        raise error
    return float(results[key])


def sibling() -> bool:
    """Whether another of the processes that share this run is the one that writes and speaks."""
    return os.environ.get("RANK", "0") != "0"


def alone(job: Callable[[], object]) -> None:
    """Do what is no cell. A mistake ends the program here, before Hydra adds lines of its own."""
    try:
        job()
    except Exception as raised:
        error = as_mistake(raised)
        if not isinstance(error, UserError) or os.environ.get("SVDEXP_DEBUG"):
            raise
        end(error)


def end(error: UserError) -> NoReturn:
    """End the program with the error's sentence."""
    print(f"svdexp: {one_sentence(error)}", file=sys.stderr)
    sys.exit(BUSY if isinstance(error, HeldError) else 1)


def cli(main: Callable[[], object], schema: type) -> int:
    """Run `main`, whose configuration is a `schema`; mistakes become one line on standard error and exit code 1.

    SVDEXP_DEBUG=1 in the environment shows the traceback instead.
    """
    ConfigStore.instance().store(name="schema", node=schema)
    register_names()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach us; Hydra would print its own excerpt
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of what it warns, svdexp checks what matters
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the hub and transformers, which fill log files
    logging.captureWarnings(True)  # Python's warnings, too, go where logs go
    logging.raiseExceptions = False  # a log on a full disk loses lines, and prints no tracebacks
    sys.argv[1:] = sweep_first([without_plus(word) for word in sys.argv[1:]])
    if sibling():
        sys.argv += ["hydra.run.dir=.", "hydra/job_logging=disabled"]
    return interruptible(lambda: explained(lambda: tell(sys.argv[1:], CONFIGS[schema]) or main()))


def tell(words: Sequence[str], config: str) -> bool:
    """Whether the words ask for help, the version or a list of choices, which is printed.

    Raises:
        UserError: there is no such group.
    """
    asked = next((word for word in words if word in ("--help", "-h", "--version", "--list")), None)
    if asked == "--version":
        print(f"svdexp {__version__}")
    elif asked == "--list":
        print(listing(*words[words.index("--list") + 1 :][:1]))
    elif asked:
        print(page(config))
    return asked is not None


def without_plus(word: str) -> str:
    """`+experiment=NAME`, as older commands have it, as `experiment=NAME`: the group is in the defaults now."""
    return word.removeprefix("+") if word.startswith("+experiment=") else word


def sweep_first(words: Sequence[str]) -> list[str]:
    """`-m` before all else: among the overrides Hydra's parser does not take it, and prints its usage."""
    return sorted(words, key=lambda word: word not in ("-m", "--multirun"))


def explained(main: Callable[[], object]) -> int:
    """Run `main`; the exit code. Whatever Hydra raises before there is a job is a mistake in what it was given."""
    try:
        refuse_null_groups(sys.argv[1:])
        sys.argv[1:] = one_dry_run(sys.argv[1:])
        main()
    except Exception as error:
        mistake = without_variable(as_mistake(error))
        if os.environ.get("SVDEXP_DEBUG") or not (isinstance(mistake, KNOWN) or outside_jobs(error)):
            raise
        print(f"svdexp: {one_sentence(mistake)}", file=sys.stderr)
        return 1
    return 0


def refuse_null_groups(words: Sequence[str]) -> None:
    """Raise UserError for GROUP=null, which Hydra takes in a defaults list but not on a command line."""
    for word in words:
        key, _, value = word.partition("=")
        group = Path(config_dir(), key.strip("+ ").partition("@")[0])
        if value.strip() == "null" and group.is_dir():
            choices = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
            name = group.relative_to(config_dir())
            raise UserError(f"{word}: the group takes one of {choices}; ~{name} leaves it out")


def without_variable(error: Exception) -> Exception:
    """The error; as a sentence where Hydra looked for a variable that the environment lacks."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not (isinstance(error, KeyError) and frames[-1:] == [type(os.environ).__getitem__.__code__]):
        return error
    return UserError(f"hydra.job.env_copy names {error.args[0]}, which the environment does not have")


def outside_jobs(error: Exception) -> bool:
    """Whether no job of ours raised it."""
    jobs = (guarded.__code__, alone.__code__)
    return not any(frame.f_code in jobs for frame, _ in traceback.walk_tb(error.__traceback__))
