"""One export, top-down: checkpoint → model → folder with its card → hub."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PretrainedConfig, PreTrainedModel

from svdexp.checkpoints.architectures import sees_images
from svdexp.checkpoints.checkpoint import architecture_of, checkpoint_of, configuration, empty_model, load, write
from svdexp.checkpoints.quantiser import forget_quantiser
from svdexp.export.adapter import FOLDER as ADAPTER
from svdexp.export.adapter import require_corrections, take_corrections, write_adapter
from svdexp.export.autogptq import convert
from svdexp.export.card import WITH_ADAPTER, card
from svdexp.export.compressed_tensors import convert as convert_to_compressed_tensors
from svdexp.export.compressed_tensors import require_codes
from svdexp.export.merge import merge
from svdexp.export.origin import Origin, copy_texts, is_inside, origin, recorded_origin
from svdexp.export.vllm import factor_pairs
from svdexp.models.matrices import Ranks, matrices_in
from svdexp.record import RESULTS, Results
from svdexp.runtime.disk import whole_folder, write_atomically
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.reading import read_object
from svdexp.runtime.sizes import size_in_words
from svdexp.schema import Config, ExportConfig, Format

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
    _require_donor(config)
    source = checkpoint_of(Path(config.path).expanduser())
    run_dir = source.parent if source.name == "checkpoint" else source
    _require_own_files(run_dir, source)
    results = _results(run_dir)
    made_from = recorded_origin(run_dir, results, source)
    if config.format is Format.gguf:
        from svdexp.export.llama_cpp import refuse_pairs  # gguf is imported by what uses it

        refuse_pairs(_table(source))
    elif config.format is Format.compressed_tensors:
        require_codes(_table(source))
    model, tokenizer = load(source, trust_remote_code=config.trust_remote_code)
    ranks = _ranks(run_dir, architecture_of(model), model.config)
    with whole_folder(target) as partial:
        notes = _written(config, model, tokenizer, partial)
        describe(partial, model.config, architecture_of(model), ranks, results, made_from, config.format, notes)
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    log.info("%s: %s", target, size_in_words(size))
    if config.push_to_hub:
        _upload(target, config.push_to_hub)


def _written(config: ExportConfig, model: PreTrainedModel, tokenizer: Any, folder: Path) -> str:
    """The files of a format; and what its card says of them beside what it says of all."""
    if config.gguf is not None:
        from svdexp.export.donor import read_donor
        from svdexp.export.llama_cpp import write_gguf

        return write_gguf(model, read_donor(config.gguf), folder)
    corrections, notes = {}, ""
    if config.format is Format.peft:
        require_corrections(model)
    if config.format in (Format.peft, Format.gptq):
        corrections = take_corrections(model)
    if config.format in (Format.dense, Format.peft):
        merge(model)
    elif config.format is Format.gptq:
        convert(model)
    elif config.format is Format.compressed_tensors:
        notes = convert_to_compressed_tensors(model)
    elif config.format is Format.vllm:
        factor_pairs(model)
    write(model, tokenizer, folder)
    if config.format is Format.vllm:
        forget_quantiser(folder)
    if corrections:
        write_adapter(model, corrections, folder / ADAPTER)
        notes = WITH_ADAPTER
    return notes


def _require_donor(config: ExportConfig) -> None:
    """Raise UserError unless there is a GGUF file just where the format wants one."""
    if config.format is not Format.gguf:
        require(config.gguf is None, f"gguf={config.gguf} has no effect with format={config.format}")
        return
    if config.gguf is None:
        raise UserError(
            "format=gguf needs gguf=FILE, the dense model's own GGUF file, from which come names, tokenizer and what "
            "was not compressed; llama.cpp's convert_hf_to_gguf.py makes one of a folder"
        )
    from svdexp.export.donor import donor_file

    require(donor_file(config.gguf).is_file(), f"gguf={config.gguf} is not a file")


def _table(checkpoint: Path) -> Mapping[str, Any]:
    """The layers of a checkpoint's config.json, for a first look; `load` looks closer."""
    table = read_object(checkpoint / "config.json").get("svdexp")
    layers = table.get("layers") if isinstance(table, dict) else None
    return layers if isinstance(layers, dict) else {}


def add_card(config: Config, run_dir: Path) -> None:
    """Put the card that save=hf adds into a finished run's checkpoint."""
    folder = run_dir / "checkpoint"
    compressed, architecture = configuration(folder, config.model.trust_remote_code)
    ranks = _ranks(run_dir, architecture, compressed)
    describe(folder, compressed, architecture, ranks, _results(run_dir), origin(config.model))


def describe(
    folder: Path,
    config: PretrainedConfig,
    architecture: type[PreTrainedModel],
    ranks: Ranks,
    results: Results | None,
    made_from: Origin | None,
    form: Format = Format.hf,
    notes: str = "",
) -> None:
    """Put a model card, and the dense model's licence where it is a file, into the checkpoint `folder`.

    `config` is the checkpoint's, `architecture` the class of the dense model; `notes` are of the format's files.
    """
    matrices = matrices_in(empty_model(architecture, config))
    shapes = {matrix.name: (matrix.m, matrix.n) for matrix in matrices if matrix.name in ranks}
    if made_from:
        copy_texts(made_from, folder)
    write_atomically(folder / "README.md", card(made_from, ranks, shapes, results, form, sees_images(config), notes))


def _results(run_dir: Path) -> Results | None:
    """The run's record, of which a card can be written.

    Raises:
        UserError: it cannot.
    """
    path = run_dir / RESULTS
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


def _ranks(run_dir: Path, architecture: type[PreTrainedModel], config: PretrainedConfig) -> Ranks:
    """Those that the run left, which name dense layers, too; or those of the checkpoint. As `describe` takes them.

    Raises:
        UserError: the run's file is not of this model.
    """
    path = run_dir / "ranks.json"
    if not path.is_file():
        return {name: entry["rank"] for name, entry in config.svdexp["layers"].items()}
    ranks = read_object(path)
    names = {matrix.name for matrix in matrices_in(empty_model(architecture, config))}
    for name, rank in ranks.items():
        require(
            name in names and (rank is None or (type(rank) is int and rank >= 1)),
            f"{path} does not belong to the checkpoint: {name} cannot have the rank {rank}",
        )
    return ranks


def _require_own_files(run_dir: Path, checkpoint: Path) -> None:
    """Raise UserError for a link out of the run's folder: an export would copy, and may upload, what it names."""
    owned = {run_dir / name: run_dir for name in (RESULTS, "ranks.json", ".hydra/config.yaml", "checkpoint")}
    owned |= dict.fromkeys(checkpoint.rglob("*"), checkpoint)
    for path, folder in owned.items():
        require(is_inside(path, folder), f"{path} is a link out of {folder}: put the file itself there")


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
        why = (
            f"{error} {error.__cause__ or ''}".split()
        )  # the client's own sentence names a file, and its cause says why
        raise UserError(f"push_to_hub={repository}: {folder} is written but not uploaded: {' '.join(why)}") from error
