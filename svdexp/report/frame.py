"""One tidy table: a row per run, a column per figure, and what the pictures need beside the record."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import sqrt

import numpy as np
import pandas as pd

from svdexp.cells.choices import in_words
from svdexp.record import results as keys
from svdexp.record.kinds import Table
from svdexp.record.speeds import speedup
from svdexp.report.collect import Record
from svdexp.runtime.model_names import name_of
from svdexp.schema import TargetsConfig, Traversal

SECONDS = ("calibration", "factorisation", "allocation", "storage", "update", "training")
FULL = asdict(TargetsConfig())  # what a run compresses unless it is told otherwise
# Beginnings of columns that are made here, and not always; no run writes such keys.
MADE = ("series", "asked", "speedup/", "model_bytes", "target_bytes", "ppl_bos/")
# What may differ between two runs of one method that are not the same line of a picture.
PARTS = ("weighting", "allocation", "update", "training", "storage", "traversal", "calibrated_on", "compresses")


AS_IT_IS = "as it is"
MEAN, MEAN_DENSE = "acc_mean", "acc_mean_dense"
MEAN_ERROR, MEAN_ERROR_DENSE = "acc_mean_stderr", "acc_mean_stderr_dense"


def tidy(records: Sequence[Record], rivals: Sequence[Record] = ()) -> pd.DataFrame:
    """One row per run with every single-valued key of its record, and beside them:

    `run`: a number. `series`: the line of a picture that the run belongs to. `model_bytes`, `model_bytes_dense`,
    `target_bytes_dense`: the whole model and the targeted layers as a 16-bit checkpoint, whatever format the run
    computed in. `seconds_to_compress`: all stages but loading, evaluation and saving. `acc_mean`, `acc_mean_stderr`:
    over the tasks of the run, which are independent; `asked`: these and the rows of each; `groups`: those of lm-eval's
    whose pooled figures stand beside them.
    `speedup/…`: tokens per second over the dense model's. `calibrated_on`, `compresses`: in a few words.

    Behind them one for each of `rivals`, models that were measured as they are: without method and ratio, and with the
    bytes of its files as the model's.
    """
    rows = pd.DataFrame([*map(_row, records), *map(_rival, rivals)])
    for key in (keys.METHOD.name, keys.RATIO.name, "model_bytes_dense", "target_bytes_dense"):
        if key not in rows:  # of models as they are alone
            rows[key] = pd.Series(np.nan, rows.index, object if key == keys.METHOD.name else float)
    for key in rows.select_dtypes(["object", "str"]):  # a file of columns takes one type in each
        if pd.api.types.infer_dtype(rows[key], skipna=True).startswith("mixed"):
            rows[key] = rows[key].map(str, na_action="ignore")
    rows.insert(0, "series", labels(rows))
    rows.insert(0, "run", range(1, len(rows) + 1))
    for index, rival in enumerate(rivals, len(records)):
        path = keys.MODEL_PATH.get(rival) or keys.MODEL.of(rival)
        rows.loc[index, "series"] = f"{name_of(path)} ({AS_IT_IS})"
    return rows


def _row(record: Record) -> Record:
    row = {key: value for key, value in record.items() if not (isinstance(value, dict | list) or key.startswith(MADE))}
    row.setdefault(keys.TRAVERSAL.name, Traversal.dense.value)  # older records do not say; few were anything else
    for part, options in keys.PARTS.items():
        chosen = part.get(record)
        row[part.name] = in_words(chosen, options.get(record) or {}) if chosen else None
    trained = keys.TRAINING.get(record) or {}
    said = [in_words(part.get("name", name), part["options"]) for name, part in trained.items()]
    row[keys.TRAINING.name] = " + ".join(said) or None
    row["seconds_to_compress"] = seconds_to_compress(record)
    row |= sizes(record)
    row |= {f"ppl_bos/{text}": how.get("bos") for text, how in (keys.PROTOCOL.get(record) or {}).items()}
    pooled = groups_in(record)
    tasks = [task for task in tasks_among(record) if task not in pooled]
    row |= _mean(tasks, keys.ACC.of(record), keys.ACC_STDERR.of(record), MEAN, MEAN_ERROR)
    row |= _mean(tasks, keys.ACC.of_dense(record), keys.ACC_STDERR.of_dense(record), MEAN_DENSE, MEAN_ERROR_DENSE)
    row["tasks"] = ", ".join(sorted(tasks)) or None
    row["groups"] = ", ".join(group for group in pooled if group in keys.ACC.of(record)) or None
    rows = keys.ACC_ROWS.of(record)
    row["asked"] = ", ".join(f"{task} {rows.get(task, '')}".strip() for task in sorted(tasks)) or None
    row |= {f"speedup/{phase}": factor for phase in keys.PHASES if (factor := speedup(record, phase))}
    return row | {"calibrated_on": _calibration(keys.CALIBRATION.get(record)), "compresses": _compresses(record)}


def _rival(record: Record) -> Record:
    """Its files' bytes are recorded where they are on this disk; older records have what the loaded tensors took."""
    found = [keys.FILE_BYTES.get(record) or keys.BYTES.get(record)]
    if (params := keys.PARAMS.get(record)) and not keys.FILE_BYTES.get(record):
        found.append(2 * params)  # a float32 run loads 32 bits
    sizes = [size for size in found if size]
    return _row(record) | {keys.TRAVERSAL.name: None} | ({"model_bytes": min(sizes)} if sizes else {})


def sizes(record: Record) -> Record:
    """The model's bytes and the targeted layers' at 16 bits; nothing where the record does not say."""
    dense, kept = keys.TARGET_BITS.get_dense(record), keys.TARGET_BITS.get(record)
    params = keys.PARAMS.get_dense(record)
    if dense is None or kept is None or params is None:
        return {}
    # versions before 0.1 counted a float32 run's numbers as 32 bits
    per_byte = 16 if dense > 16 * params else 8
    whole = 2 * params
    model = whole - (dense - kept) / per_byte
    return {"model_bytes_dense": whole, "target_bytes_dense": dense / per_byte, "model_bytes": model}


def seconds_to_compress(record: Record) -> float:
    """Of all stages but loading, evaluation and saving."""
    seconds = keys.SECONDS.of(record)
    return sum(seconds.get(stage, 0.0) for stage in SECONDS)


def tasks_among(columns: Iterable[str]) -> list[str]:
    """The tasks whose accuracies are among keys; their average is none."""
    return [task for task in keys.ACC.among(columns) if task != keys.AVERAGE]


def groups_in(record: Record) -> list[str]:
    """The groups of tasks that a run was asked for, whose pooled figures are no tasks'."""
    asked = (keys.TASKS.get(record) or {}).values()
    return list(dict.fromkeys(group for task in asked for group in task.get("groups", ())))


def _mean(
    tasks: Sequence[str], shares: Mapping[str, float], errors: Mapping[str, float], key: str, error_key: str
) -> Record:
    """The mean over tasks, and its standard error where all have one."""
    there = [task for task in tasks if task in shares]
    if not there:
        return {}
    mean: Record = {key: sum(shares[task] for task in there) / len(there)}
    if not all(task in errors for task in there):
        return mean
    return mean | {error_key: sqrt(sum(errors[task] ** 2 for task in there)) / len(there)}


def _calibration(part: Table | None) -> str | None:
    return f"{part['text']} {part['samples']}×{part['seq_len']}" if part else None


def targets(record: Record) -> Table:
    """What the run compressed; older records do not say, and were whole."""
    found = keys.TARGETS.get(record)
    return FULL if found is None else found


def _compresses(record: Record) -> str:
    """Empty for all linear layers of the blocks."""
    changed = {key: value for key, value in targets(record).items() if value != FULL.get(key)}
    return " ".join(f"{key}={value}" for key, value in changed.items())


def labels(rows: pd.DataFrame) -> list[str]:
    """Per row its method, and of its parts those in which other rows of the method on the model differ."""
    parts = [part for part in PARTS if part in rows]
    found = pd.Series("", index=rows.index)
    for (_, method), group in rows.groupby(["label", "method"]):
        varying = [part for part in parts if group[part].nunique(dropna=False) > 1]
        said = {part: _apart(group[part].fillna("").astype(str)) for part in varying}
        for index in group.index:
            words = [method, *(said[part][group[part].fillna("").astype(str)[index]] for part in varying)]
            found[index] = " · ".join(word for word in words if word)
    return list(found)


def _apart(values: pd.Series) -> dict[str, str]:
    """The shortest words that tell the values of a part apart: its name, or with the options that differ."""
    parsed = {value: _parse(value) for value in values.unique()}
    names = [name for name, _ in parsed.values()]
    if len(set(names)) == len(names):
        return {value: name for value, (name, _) in parsed.items()}
    seen = [options for _, options in parsed.values()]
    differing = [
        key for key in dict.fromkeys(k for o in seen for k in o) if len({options.get(key) for options in seen}) > 1
    ]
    return {
        value: " ".join([name, *(f"{key}={options[key]}" for key in differing if key in options)])
        for value, (name, options) in parsed.items()
    }


def _parse(value: str) -> tuple[str, dict[str, str]]:
    """`diagonal(alpha=0.5, scale=abs_mean)` → the name and its options."""
    found = re.fullmatch(r"(\w+)\((.*)\)", value, re.DOTALL)
    if not found:
        return value, {}
    return found[1], dict(option.split("=", 1) for option in re.split(r", (?=\w+=)", found[2]))
