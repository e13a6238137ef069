"""One export, top-down: checkpoint → model → folder with its card → hub."""

import logging
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from omegaconf import OmegaConf
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from svdexp.allocation import Ranks
from svdexp.card import card
from svdexp.disk import whole_folder, write_atomically
from svdexp.errors import UserError
from svdexp.models.autogptq import convert
from svdexp.models.checkpoint import architecture_of, checkpoint_of, empty_model, load, write
from svdexp.models.merge import merge
from svdexp.models.origin import Origin, origin
from svdexp.models.structure import weight_of
from svdexp.reading import read_object
from svdexp.schema import Config, ExportConfig, Format, ModelConfig, require
from svdexp.tracking import Results

log = logging.getLogger(__name__)


def publish(config: ExportConfig) -> None:
    """Write `config.to`, and upload it if asked to.

    Raises:
        UserError: anything the user can mend; raised before the model is loaded where possible.
    """
    target = Path(config.to).expanduser()
    require(not target.exists(), f"to={config.to} is there already: name a folder that is not")
    if config.push_to_hub:
        _require_account(config.push_to_hub)
    source = checkpoint_of(Path(config.path).expanduser())
    run_dir = source.parent if source.name == "checkpoint" else source
    results, made_from = _results(run_dir), _origin(run_dir)
    model, tokenizer = load(source)
    ranks = _ranks(run_dir, model)
    if config.format is Format.dense:
        merge(model)
    elif config.format is Format.gptq:
        convert(model)
    with whole_folder(target) as partial:
        write(model, tokenizer, partial)
        describe(partial, model.config, ranks, results, made_from, config.format)
    log.info("%s: %.1f MB", target, sum(path.stat().st_size for path in target.iterdir()) / 1e6)
    if config.push_to_hub:
        _upload(target, config.push_to_hub)


def add_card(config: Config, run_dir: Path) -> None:
    """Put the card that save=hf adds into a finished run's checkpoint."""
    folder = run_dir / "checkpoint"
    compressed = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    ranks = read_object(run_dir / "ranks.json")
    describe(folder, compressed, ranks, _results(run_dir), origin(config.model))


def describe(
    folder: Path,
    config: PretrainedConfig,
    ranks: Ranks,
    results: Results | None,
    made_from: Origin | None,
    form: Format = Format.hf,
) -> None:
    """Put a model card, and the dense model's licence where it is a file, into the checkpoint `folder` of `config`."""
    skeleton = empty_model(architecture_of(config), config)
    shapes = {name: (m, n) for name in ranks for m, n in [weight_of(skeleton.get_submodule(name)).shape]}
    for text in made_from.texts if made_from else ():
        shutil.copy(text, folder)
    write_atomically(folder / "README.md", card(made_from, ranks, shapes, results, form))


def _results(run_dir: Path) -> Results | None:
    """The run's record, of which a card can be written.

    Raises:
        UserError: it cannot.
    """
    path = run_dir / "results.json"
    if not path.is_file():
        return None
    found = read_object(path)
    try:
        card(None, {}, {}, found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no whole record of a run, so no card can be written of it: {type(error).__name__}: {error}"
        ) from error
    return found


def _ranks(run_dir: Path, model: PreTrainedModel) -> Ranks:
    """Those that the run left, which name dense layers, too; or those of the model.

    Raises:
        UserError: the run's file is not of this model.
    """
    path = run_dir / "ranks.json"
    if not path.is_file():
        return {name: entry["rank"] for name, entry in model.config.svdexp["layers"].items()}
    ranks = read_object(path)
    modules = dict(model.named_modules())
    for name, rank in ranks.items():
        right = name in modules and (rank is None or (type(rank) is int and rank >= 1))
        require(right, f"{path} does not belong to the checkpoint: {name} cannot have the rank {rank}")
    return ranks


def _origin(run_dir: Path) -> Origin | None:
    """The dense model of the run, from the configuration that Hydra left in its directory."""
    path = run_dir / ".hydra" / "config.yaml"
    if not path.is_file():
        return None
    config = OmegaConf.load(path).model
    return origin(ModelConfig(config.name, config.path, config.revision))


def _require_account(repository: str) -> None:
    try:
        HfApi().whoami()
    except Exception as error:
        raise UserError(f"push_to_hub={repository} needs an account: hf auth login ({error})") from error


def _upload(folder: Path, repository: str) -> None:
    try:
        HfApi().create_repo(repository, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the network, the hub, and its client have many types
        raise UserError(f"push_to_hub={repository}: {folder} is written but not uploaded: {error}") from error
