"""Every key of results.json, once. Its keys are stable names that other tools may rely on.

The record is one flat JSON object. A run of a compression has the dense model's figures as well (`twin`), under
`dense` or `dense_at`; an evaluation alone has none, nor what only a compression is asked for.
"""

from typing import Any

from svdexp.record.keys import Better, Entry, Family, Key, Unit
from svdexp.record.kinds import COUNT, LISTS, NUMBER, SAYINGS, TABLE, TABLES, TRAININGS, WORD, Table, maybe

RESULTS = "results.json"  # the file, in the run's folder
LOWER, HIGHER = Better.lower, Better.higher

# The model.
MODEL = Key("model", WORD, "its name")
MODEL_PATH = Key("model_path", WORD, "where it came from")
MODEL_REVISION = Key("model_revision", maybe(WORD), "its revision on a hub")
MODEL_FINGERPRINT = Key("model_fingerprint", maybe(WORD), "of the dense weights, in the run's number format")
ORIGIN = Key("origin", TABLE, "the dense model's repository and licence, where a checkpoint was saved")

# What was asked for.
CELL = Key("cell", WORD, "identity of the configuration and of the files that it reads")
METHOD = Key("method", WORD, "its name")
WEIGHTING = Key("weighting", maybe(WORD), "the choice, by its name")
WEIGHTING_OPTIONS = Key("weighting_options", maybe(TABLE), "all of its options")
ALLOCATION = Key("allocation", maybe(WORD), "the choice, by its name")
ALLOCATION_OPTIONS = Key("allocation_options", maybe(TABLE), "all of its options")
UPDATE = Key("update", maybe(WORD), "the choice, by its name")
UPDATE_OPTIONS = Key("update_options", maybe(TABLE), "all of its options")
STORAGE = Key("storage", WORD, "the choice, by its name")
STORAGE_OPTIONS = Key("storage_options", maybe(TABLE), "all of its options")
TRAVERSAL = Key("traversal", maybe(WORD), "whose inputs calibrate: the dense model's, or the compressed blocks'")
NUMERICS = Key("numerics", WORD, "how the weighted singular value decomposition is computed")
SIGMA_FUSE = Key("sigma_fuse", WORD, "which factor has the singular values")
TRAINING = Key("training", TRAININGS, "by training: choice, options, tokens seen, and its curve")
TARGETS = Key("targets", TABLE, "which layers are compressed, and whose ranks are fixed")
CALIBRATION = Key("calibration", TABLE, "the text that calibrates, and its windows")
CALIBRATION_BOS = Key("calibration_bos", WORD, "what calibration.bos came to")
EVAL = Key("eval", TABLE, "what was measured")
RATIO = Key("ratio", NUMBER, "kept fraction of the targeted layers, asked for", unit=Unit.share)
SEARCH = Key("search", TABLE, "where ppl asked for a size: text, factor, the dense perplexity, and what was tried")
SEED = Key("seed", COUNT, "of everything that is drawn")

# What was done.
ACHIEVED_RATIO = Key("achieved_ratio", NUMBER, "kept fraction of the targeted layers' bits", unit=Unit.share)
TARGET_BITS = Key("target_bits", COUNT, "of the targeted layers", unit=Unit.bits, better=LOWER, twin=True)
LEFT_DENSE = Key("left_dense", LISTS, "by reason, layers that the targets select and that stayed as they are")
FORMS = Key("forms", TABLE, "by form, how many layers have it, where there was a choice")
DAMPED_LAYERS = Key("damped_layers", COUNT, "whose moment was not positive definite", unit=Unit.layers)
DAMPING_MAX = Key("damping_max", NUMBER, "the largest that one of them needed, in units of the mean eigenvalue")
ENERGY_LOST_MEAN = Key("energy_lost_mean", maybe(NUMBER), "of the weighted energy, over the layers", unit=Unit.share)
RELOAD = Key("reload_max_logit_difference", NUMBER, "between the model in memory and the saved one")

# What the model is worth.
PPL_STDERR = Family("ppl_stderr", NUMBER, "its standard error", member="TEXT", twin=True, is_support=True)
PPL_TOKENS = Family(
    "ppl_tokens", COUNT, "predicted tokens that count", member="TEXT", unit=Unit.tokens, twin=True, is_support=True
)
PPL = Family("ppl", NUMBER, "perplexity", member="TEXT", better=LOWER, twin=True, error=PPL_STDERR)
PROTOCOL = Key("protocol", TABLES, "by text, how its perplexity was measured")
ACC_STDERR = Family("acc_stderr", NUMBER, "its standard error", member="TASK", twin=True, is_support=True)
ACC_NORM_STDERR = Family("acc_norm_stderr", NUMBER, "its standard error", member="TASK", twin=True, is_support=True)
ACC_ROWS = Family("acc_rows", COUNT, "rows asked", member="TASK", unit=Unit.rows, twin=True, is_support=True)
ACC = Family(
    "acc", NUMBER, "rows that are right", member="TASK", unit=Unit.share, better=HIGHER, twin=True, error=ACC_STDERR
)
ACC_NORM = Family(
    "acc_norm",
    NUMBER,
    "rows that are right by likelihood per character",
    member="TASK",
    unit=Unit.share,
    better=HIGHER,
    twin=True,
    error=ACC_NORM_STDERR,
)
SCORE_STDERR = Family("score_stderr", NUMBER, "its standard error", member="TASK/METRIC", twin=True, is_support=True)
SCORE = Family("score", NUMBER, "by lm-eval's metric of that name", member="TASK/METRIC", twin=True, error=SCORE_STDERR)
AVERAGE = "average"  # a member of ACC and of ACC_STDERR that is no task: the mean of the seven commonsense ones
TASKS = Key("tasks", TABLES, "by task, how it was asked")
GENERATION = Key("generation", SAYINGS, "prompts, and how the models continue them")

# How fast and how large it is.
PREFILL, DECODE = PHASES = ("prefill", "decode")
SPEED = Family(
    "tokens_per_second",
    NUMBER,
    "median of the repeats, over the batch",
    member="PHASE",
    members=PHASES,
    unit=Unit.speed,
    better=HIGHER,
    twin=True,
    one_measurement=True,
)
SPEED_ROUTED = Family(
    "tokens_per_second_routed",
    NUMBER,
    "the dense model's, where its own products go by our routes",
    member="PHASE",
    members=PHASES,
    unit=Unit.speed,
    is_support=True,
)
SPEED_SPREAD = Family(
    "speed_spread",
    NUMBER,
    "(fastest - slowest) / median",
    member="PHASE",
    members=PHASES,
    twin=True,
    is_support=True,
)
LATENCY = Family(
    "latency_ms",
    NUMBER,
    "until the first new token; of further ones",
    member="WHICH",
    members=("first_token", "p50", "p90", "p99"),
    unit=Unit.milliseconds,
    better=LOWER,
    twin=True,
)
GENERATION_BYTES = Family(
    "generation_bytes",
    COUNT,
    "held while it generates",
    member="WHICH",
    members=("peak", "kv_cache"),
    unit=Unit.bytes,
    better=LOWER,
    twin=True,
)
FLOPS_PER_TOKEN = Key(
    "flops_per_token", NUMBER, "products of the prompt's tokens", unit=Unit.flops, better=LOWER, twin=True
)
PARAMS = Key("params", COUNT, "numbers among the model's parameters", better=LOWER, twin=True)
BYTES = Key("bytes", COUNT, "stored tensors", unit=Unit.bytes, better=LOWER, twin=True)
FILE_BYTES = Key("file_bytes", COUNT, "of the files with the weights, of a model measured as it is", unit=Unit.bytes)

# What the run took, and what it ran on and with.
SECONDS = Family("seconds", NUMBER, "wall clock", member="STAGE", unit=Unit.seconds, better=LOWER)
PEAK_RSS = Key("peak_rss_bytes", COUNT, "the most that the process held", unit=Unit.bytes, better=LOWER)
PEAK_RSS_BY_STAGE = Family(
    "peak_rss_bytes", COUNT, "the most it had held by a stage's end", member="STAGE", unit=Unit.bytes, better=LOWER
)
PEAK_DEVICE = Key("peak_device_bytes", COUNT, "the most on the fullest CUDA device", unit=Unit.bytes, better=LOWER)
PEAK_DEVICE_BY_STAGE = Family(
    "peak_device_bytes", COUNT, "the same of a stage", member="STAGE", unit=Unit.bytes, better=LOWER
)
DEVICE = Key("device", WORD, "what computed")
DTYPE = Key("dtype", WORD, "number format of the weights")
THREADS = Key("threads", COUNT, "of torch")
COMMIT = Key("commit", maybe(WORD), "of the svdexp checkout")
VERSIONS = Key("versions", TABLE, "of Python and of packages")
COMMAND = Key("command", maybe(WORD), "what repeats the run behind `python -m svdexp`")
RUN_DIR = Key("run_dir", WORD, "the run's folder")
TRACKER_URL = Key("tracker_url", maybe(WORD), "URL where the tracker shows the run; null where it has none")

ENTRIES: tuple[Entry[Any], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Entry))
# The parts of a run that are choices, and their options.
PARTS: dict[Key[Any], Key[Table | None]] = {
    WEIGHTING: WEIGHTING_OPTIONS,
    ALLOCATION: ALLOCATION_OPTIONS,
    UPDATE: UPDATE_OPTIONS,
    STORAGE: STORAGE_OPTIONS,
}
