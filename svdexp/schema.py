"""Typed configuration: every key, its type and its range, checked before any model is loaded.

Hydra merges the YAML files of conf/ and the command line into `Config`, which rejects misspelt keys and
wrong types. `__post_init__` checks ranges and rules across fields; OmegaConf runs it in `validate`. The
parts of a method (weighting, allocation, storage, …) are dataclasses that live beside their mathematics;
`svdexp.method.build` checks their options against those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from svdexp.runtime.errors import UserError, require, require_positive, require_ratio, require_seed, require_tokens
from svdexp.runtime.model_names import name_of
from svdexp.runtime.nearest import did_you_mean
from svdexp.runtime.sizes import parse_factor, parse_size

OmegaConf.register_new_resolver("name_of", name_of, replace=True)  # conf/model/ cannot be read without

LARGEST_INTEGER = 2**63 - 1
MIXTURE = "mixture"  # the text that is made of others
IMAGES = "images"  # the text that is captions of images
COLLECTED = ("hub", IMAGES)  # texts of any data set
THIS = "this"  # the device of a dry run that is for this machine
RATIO_STEPS = 100  # ppl=… finds a ratio that is a multiple of one over this


def collected(texts: Sequence[str]) -> str:
    """Which of COLLECTED is among `texts`; the first where there is none."""
    return next((name for name in COLLECTED if name in texts), COLLECTED[0])


class Traversal(StrEnum):
    """Where calibration statistics come from."""

    dense = "dense"  # every statistic from the dense model, in one pass
    blockwise = "blockwise"  # block by block, inputs from the already compressed blocks before it


class Numerics(StrEnum):
    """How the whitened SVD is computed: four routes to one optimum, see svdexp/factorisation/solvers.py."""

    eigh = "eigh"  # ours: one eigendecomposition on the smaller side
    cholesky = "cholesky"  # SVD-LLM (2403.07378): R = chol(C), full SVD, inverse of R
    double_svd = "double_svd"  # SVD-LLM V2 (2503.12340): R = Q Λ^½ from C = Q Λ Qᵀ, full SVD, inverse of R
    output_eigh = "output_eigh"  # Swift-SVD (2604.01609): eigendecomposition of the output covariance (m, m)


class SigmaFuse(StrEnum):
    """Which factor carries the singular values Σ: a matter of rounding only, the product is the same."""

    balanced = "balanced"  # component by component the same norm in A and B: kindest to 16-bit storage
    U = "U"  # A = L⁻¹ U Σ
    V = "V"  # B = Σ Vᵀ R⁻¹
    UV = "UV"  # Σ^½ in each, SVD-LLM's choice


class Sampling(StrEnum):
    """Which windows of a text calibrate."""

    first = "first"  # the first windows, contiguous
    random = "random"  # windows at random token offsets, drawn with the run's seed


class Bos(StrEnum):
    """Where a beginning-of-sequence token stands in a text."""

    none = "none"
    every = "every"  # at the beginning of every window
    start = "start"  # one in all, before the text
    tokenizer = "tokenizer"  # `every` where the model's tokenizer adds one of its own accord, else `none`
    tokenizer_start = (
        "tokenizer_start"  # `start` there, else `none`: the whole text given to the tokenizer, as papers do
    )


class SpecialTokens(StrEnum):
    """What a special token is that is written out in a text that evaluates, `<unk>` for instance."""

    text = "text"  # characters like any others
    parsed = "parsed"  # the special token, as papers have it


class Cut(StrEnum):
    """How the windows of a text that evaluates are taken."""

    contiguous = "contiguous"  # one after the other from the beginning, `stride` tokens apart
    pieces = "pieces"  # at random places of pieces at random places of the text, as Dobi-SVD's reference
    rows = "rows"  # at random places of random rows that are long enough, as it does on C4


class Precision(StrEnum):
    """Number format of the model's weights and activations."""

    auto = "auto"  # bfloat16 where the device computes it natively, otherwise float32
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class CacheKind(StrEnum):
    """What generation keeps of the tokens that it has seen."""

    plain = "plain"  # keys and values
    latent = "latent"  # where a compressed k_proj or v_proj is a pair, what its first factor gives


class Residency(StrEnum):
    """Where the weights of the model are while a run works on it."""

    auto = "auto"  # streamed where the estimate says that the whole does not fit the device, and it can be
    whole = "whole"  # all of them on the device
    streamed = "streamed"  # those of one block; the others wait in the model's files


class Save(StrEnum):
    """What a run leaves on disk beside its figures."""

    auto = "auto"  # checkpoint; the cells of a grid are told `none` (hydra_plugins/svdexp_sweeps/grid.py)
    checkpoint = "checkpoint"
    hf = "hf"  # the same, ready for a hub: with a model card
    elastic = "elastic"  # a checkpoint, and in it what it takes to load the model at any lower ratio
    none = "none"


class Format(StrEnum):
    """What an export writes."""

    hf = "hf"  # the compressed model with the code that transformers needs to load it
    dense = "dense"  # W' = A B in place of every factorised W, for tools that know no low rank
    gptq = "gptq"  # codes in AutoGPTQ's layout, for GPTQModel's kernels; corrections as an adapter
    peft = "peft"  # codes with a correction as a dense model and an adapter
    vllm = "vllm"  # every layer as a pair of plain factors, which vLLM's transformers backend runs
    gguf = "gguf"  # whole matrices in codes, and corrections as a LoRA, for llama.cpp
    compressed_tensors = "compressed_tensors"  # whole matrices in codes, for transformers with that package


def require_integers(values: Any, knob: str) -> None:
    """Raise UserError for an integer in nested `values` that has no 64 bits to fit in, as tensors and files want it."""
    inside: Mapping[Any, Any] = {}
    if isinstance(values, Mapping):
        inside = values
    elif isinstance(values, list):
        inside = dict(enumerate(values))
    for key, value in inside.items():
        require_integers(value, f"{knob}.{key}" if knob else str(key))
    huge = isinstance(values, int) and not -LARGEST_INTEGER <= values <= LARGEST_INTEGER
    require(not huge, f"{knob}={values} does not fit into 64 bits")


def spelt_out(separator: str) -> str:
    """`separator` with real line breaks and tabs: command lines can hardly hold them."""
    return separator.replace("\\n", "\n").replace("\\t", "\t")


def dry_device(dry_run: Any) -> str | None:
    """The device that a dry run is for; None where none is asked for.

    `dry_run` is true for this machine, or has a `device`, whose null asks for none.

    Raises:
        UserError: it is neither.
    """
    if isinstance(dry_run, Mapping) and dry_run.keys() == {"device"}:
        named = dry_run["device"]
        return None if named is None else str(named)
    require(
        isinstance(dry_run, bool), f"dry_run={dry_run} is neither true nor false; dry_run.device=NAME is for a device"
    )
    return THIS if dry_run else None


@dataclass
class ModelConfig:
    """Any causal language model that transformers loads."""

    name: str = MISSING
    path: str = MISSING  # hub id, local folder, FILE.gguf, or pkg://PACKAGE/FILE.gguf
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass
class TargetsConfig:
    """Which linear layers are compressed, and which ranks are fixed: fnmatch patterns over module names."""

    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    lm_head: bool = False
    ranks: dict[str, int | None] = field(default_factory=dict)  # null: dense; the first match wins

    def __post_init__(self) -> None:
        require(bool(self.include), "targets.include is empty: name at least one pattern, for instance '*'")


@dataclass
class MethodConfig:
    """A method is its parts; each part names its class in `_target_` and that class's options."""

    name: str = MISSING
    traversal: Traversal = Traversal.dense
    numerics: Numerics = Numerics.eigh
    sigma_fuse: SigmaFuse = SigmaFuse.balanced
    weighting: dict[str, Any] | None = MISSING
    allocation: dict[str, Any] = MISSING
    update: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)


def refuse_idle_collection(group: str, part: Any, split: str) -> None:
    """Raise UserError for what says how a data set is read where none is named; `split` is the usual one."""
    for key, usual in {"subset": None, "split": split, "column": "text"}.items():
        value = getattr(part, key)
        require(
            part.dataset is not None or value == usual,
            f"{group}.{key}={value} has no effect without {group}.dataset"
            + ("; eval.split_by_text.TEXT=… is for other texts" if (group, key) == ("eval", "split") else ""),
        )


@dataclass
class CalibrationConfig:
    """The text that calibrates, and how many windows of which length are cut from it."""

    text: str = MISSING
    files: list[str] = field(default_factory=list)
    samples: int = 32
    seq_len: int = 1024
    sampling: Sampling = Sampling.first
    bos: Bos = Bos.tokenizer  # also of texts that train
    chat: bool = False  # instruction data as conversations in the tokenizer's chat template
    dataset: str | None = None  # of calibration=hub, images: hub id, folder or file, as datasets.load_dataset takes it
    subset: str | None = None  # its configuration, where it has several
    split: str = "train"
    column: str = "text"
    parts: list[str] = field(default_factory=list)  # of calibration=mixture: texts by name
    shares: list[float] = field(default_factory=list)  # of the windows, one for each part; none: all the same

    def __post_init__(self) -> None:
        require_positive("calibration.samples", self.samples)
        require_tokens("calibration.seq_len", self.seq_len)
        mixed = self.text == MIXTURE
        require(
            mixed == bool(self.parts),
            "calibration=mixture and calibration.parts=[TEXT,…] go together: give both or neither",
        )
        require(MIXTURE not in self.parts, "calibration.parts: a mixture is no part of one")
        require(IMAGES not in self.parts, "calibration.parts: images are no part of a mixture of texts")
        first = self.text != IMAGES or self.sampling is Sampling.first
        require(first, "calibration.sampling=random: images are taken in order")
        require(len(set(self.parts)) == len(self.parts), "calibration.parts names a text twice: give it a larger share")
        require(
            not self.shares or len(self.shares) == len(self.parts),
            f"calibration.shares has {len(self.shares)} numbers for the {len(self.parts)} texts of calibration.parts",
        )
        require(all(share > 0 for share in self.shares), "calibration.shares must be above 0")
        texts = self.parts if mixed else [self.text]
        require(
            ("files" in texts) == bool(self.files),
            "calibration=files and calibration.files=[…] go together: give both or neither",
        )
        require(
            any(name in texts for name in COLLECTED) == (self.dataset is not None),
            f"calibration={collected(texts)} and calibration.dataset=… go together: give both or neither",
        )
        refuse_idle_collection("calibration", self, "train")


@dataclass
class EfficiencyConfig:
    """Shape of the speed measurement; the same for the dense and the compressed model."""

    batch_size: int = 1
    prompt: int = 256
    generate: int = 32
    warmup: int = 1
    repeats: int = 3
    compile: bool = False
    cache: CacheKind = CacheKind.plain  # of the compressed model; the dense one has no pairs

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt", "generate", "warmup", "repeats"):
            require_positive(f"eval.efficiency.{name}", getattr(self, name))
        require(
            not self.compile or self.cache is CacheKind.plain,
            "eval.efficiency.cache=latent cannot be compiled; set eval.efficiency.compile=false",
        )


@dataclass
class EvalConfig:
    """What is measured, on the dense and on the compressed model alike."""

    name: str = MISSING
    texts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    dataset: str | None = None  # of eval.texts=[hub], [images]: hub id, folder or file, as load_dataset takes it
    subset: str | None = None  # its configuration, where it has several
    split: str = "test"
    column: str = "text"
    windows: int | None = None
    windows_by_text: dict[str, int | None] = field(default_factory=dict)  # where it differs from `windows`
    seq_len: int = 2048
    stride: int | None = None  # null: windows do not overlap
    bos: Bos = Bos.tokenizer
    special_tokens: SpecialTokens = SpecialTokens.text
    separator: str = "\n\n"  # between rows; \n and \t may be spelt out, as on a command line
    separator_by_text: dict[str, str] = field(default_factory=dict)
    split_by_text: dict[str, str] = field(default_factory=dict)
    rows_by_text: dict[str, int] = field(default_factory=dict)
    cut_by_text: dict[str, Cut] = field(default_factory=dict)  # contiguous, where nothing is said
    batch_size: int | None = None  # windows or requests per forward pass; null: what the device's memory allows
    tasks: list[str] = field(default_factory=list)  # any that lm-eval knows, and the suite commonsense
    include_path: str | None = None  # folder with tasks of one's own in lm-eval's YAML
    tasks_dir: str | None = None  # of NAME/test.jsonl; null: $SVDEXP_DATA/tasks where it has the task, else the hub
    num_fewshot: int | None = None  # null: lm-eval's own, none for the commonsense tasks, mmlu and boolq
    limit: int | None = None  # rows of each task, drawn with the run's seed; null: all
    prompts: list[str] = field(default_factory=list)
    efficiency: EfficiencyConfig | None = None

    def __post_init__(self) -> None:
        self.separator = spelt_out(self.separator)
        self.separator_by_text = {text: spelt_out(value) for text, value in self.separator_by_text.items()}
        if self.windows is not None:
            require_positive("eval.windows", self.windows)
        for text, windows in self.windows_by_text.items():
            require(
                text in self.texts,
                f"eval.windows_by_text names {text}, not in eval.texts; ~eval.windows_by_text.{text} removes it",
            )
            if windows is not None:
                require_positive(f"eval.windows_by_text.{text}", windows)
        for text in self.texts:
            if self.cut_of(text) is not Cut.contiguous:
                drawn, (windows, knob) = f"eval.cut_by_text.{text} draws windows", self.windows_of(text)
                require(windows is not None, f"{drawn}: say how many in {knob}")
                require(self.stride is None, f"{drawn}: eval.stride must be null")
        for text, rows in self.rows_by_text.items():
            require_positive(f"eval.rows_by_text.{text}", rows)
        require_tokens("eval.seq_len", self.seq_len)
        if self.stride is not None:
            require_positive("eval.stride", self.stride)
            self.body(self.bos)
        if self.batch_size is not None:
            require_positive("eval.batch_size", self.batch_size)
        if self.limit is not None:
            require_positive("eval.limit", self.limit)
        if self.num_fewshot is not None:
            require(self.num_fewshot >= 0, f"eval.num_fewshot must be at least 0, not {self.num_fewshot}")
        require(all(self.prompts), "eval.prompts has an empty prompt: a continuation needs something to continue")
        require(
            ("files" in self.texts) == bool(self.files),
            "eval.texts=[files] and eval.files=[…] go together: give both or neither",
        )
        require(
            any(name in self.texts for name in COLLECTED) == (self.dataset is not None),
            f"eval.texts=[{collected(self.texts)}] and eval.dataset=… go together: give both or neither",
        )
        refuse_idle_collection("eval", self, "test")
        require(not all(name in self.texts for name in COLLECTED), "eval.texts: one of hub and images, not both")
        for key in ("rows_by_text", "cut_by_text", "separator_by_text"):
            idle = IMAGES in self.texts and IMAGES in getattr(self, key)
            require(
                not idle, f"eval.{key}.images has no effect: a window is an image and its caption, eval.windows of them"
            )

    def body(self, bos: Bos) -> int:
        """How many tokens of the text one window holds, where `bos` stands.

        Raises:
            UserError: `stride` is larger.
        """
        length = self.seq_len - (bos is Bos.every)
        require(
            self.stride is None or self.stride <= length,
            f"eval.stride={self.stride} would leave out tokens between windows of {length}; "
            "it must not exceed eval.seq_len, less one where every window begins with BOS (eval.bos)",
        )
        return length

    def cut_of(self, text: str) -> Cut:
        """How the windows of `text` are taken."""
        return self.cut_by_text.get(text, Cut.contiguous)

    def windows_of(self, text: str) -> tuple[int | None, str]:
        """How many windows of `text` are evaluated, None for all, and the key that says so."""
        if text in self.windows_by_text:
            return self.windows_by_text[text], f"eval.windows_by_text.{text}"
        return self.windows, "eval.windows"


@dataclass
class Config:
    """One run. `ratio` is the KEPT fraction of the compressed layers' stored bits, everywhere."""

    model: ModelConfig = field(default_factory=ModelConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    storage: dict[str, Any] = MISSING
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: dict[str, Any] = field(default_factory=dict)
    ratio: float = MISSING
    bytes: str | None = None  # of the whole model, in place of `ratio`: 300MB, or a fraction of the dense model's
    ppl: str | None = None  # in place of both: 1.05x, the most times the dense model's perplexity; the size follows
    ppl_text: str | None = None  # which of eval.texts `ppl` is measured on; null: the first
    seed: int = 0
    device: str = "auto"
    precision: Precision = Precision.auto
    residency: Residency = Residency.auto
    save: Save = Save.checkpoint
    cache: str | None = MISSING  # folder for statistics and decompositions; null: keep them in memory
    objective: str | None = None  # the key of results.json that a searching sweeper is told
    dry_run: Any = False  # print what the run would take, and stop: see `dry_device`

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require_ratio(self.ratio)
        dry_device(self.dry_run)
        if self.save is Save.auto:
            self.save = Save.checkpoint
        self.cache = self.cache or None  # an empty SVDEXP_CACHE names no folder
        if self.bytes is not None:
            parse_size(self.bytes, "bytes")
        require(self.bytes is None or self.ppl is None, "bytes and ppl both say how small the model shall be: give one")
        if self.ppl is not None:
            parse_factor(self.ppl, "ppl")
        require(self.ppl is not None or self.ppl_text is None, "ppl_text says what ppl is measured on: give ppl, too")
        wanted, kept = self.tracker.get("checkpoint"), self.save is not Save.none
        require(kept or not wanted, "tracker.checkpoint=true needs a checkpoint to send: save=checkpoint")


@dataclass
class EvaluateConfig:
    """One model, evaluated as it is: `python -m svdexp.evaluate`."""

    path: str = MISSING  # what model.path takes, or a run directory or checkpoint of svdexp's
    model: ModelConfig = field(default_factory=ModelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    device: str = "auto"
    precision: Precision = Precision.auto
    residency: Residency = Residency.auto
    cache: str | None = MISSING

    def __post_init__(self) -> None:
        require_seed(self.seed)
        self.cache = self.cache or None


@dataclass
class ExportConfig:
    """One checkpoint for others to load: `python -m svdexp.export`."""

    path: str = MISSING  # a run directory or checkpoint
    to: str = MISSING  # a folder that is not there yet
    format: Format = Format.hf
    gguf: str | None = None  # of format=gguf: the dense model's own GGUF file
    trust_remote_code: bool = False  # run the code of a checkpoint whose dense model came with some
    push_to_hub: str | None = None  # OWNER/NAME; null: nothing leaves this machine


Schema = TypeVar("Schema", Config, EvaluateConfig, ExportConfig)


def validate(cfg: DictConfig) -> Config:
    """The composed configuration of a run as checked dataclasses.

    Raises:
        UserError: a value is missing, out of range, or contradicts another.
    """
    return _checked(cfg, Config)


def validate_evaluation(cfg: DictConfig) -> EvaluateConfig:
    """The same for an evaluation without compression."""
    return _checked(cfg, EvaluateConfig)


def validate_export(cfg: DictConfig) -> ExportConfig:
    """The same for an export."""
    return _checked(cfg, ExportConfig)


def _checked(cfg: DictConfig, schema: type[Schema]) -> Schema:
    """The composed configuration as a `schema`.

    Raises:
        UserError: a value is missing, out of range, or contradicts another.
    """
    try:
        require_integers(OmegaConf.to_container(cfg), "")
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing: say {error.full_key}=…; --help says what it takes") from error
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error
    assert isinstance(config, schema)
    refuse_unknown_keys(config)
    return config


def refuse_unknown_keys(part: object, prefix: str = "") -> None:
    """Raise UserError for a key that no dataclass declares: Hydra's `+KEY=VALUE` adds any that it is given."""
    known = [f"{prefix}{key}" for key in type(part).__dataclass_fields__]  # type: ignore[attr-defined]
    for key, value in vars(part).items():
        name = f"{prefix}{key}"
        require(name in known, f"there is no key {name}{did_you_mean(name, known)}")
        if is_dataclass(value):
            refuse_unknown_keys(value, f"{prefix}{key}.")
