"""One tidy table: a row per run, a column per figure, and what the pictures need beside the record."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from svdexp.choices import GROUPS, in_words
from svdexp.report.collect import Record
from svdexp.schema import TargetsConfig, Traversal

SECONDS = ("calibration", "factorisation", "allocation", "storage", "update", "training")
FULL = asdict(TargetsConfig())  # what a run compresses unless it is told otherwise
# Beginnings of columns that are made here, and not always; no run writes such keys.
MADE = ("series", "speedup/", "model_bytes", "target_bytes", "ppl_bos/")
# What may differ between two runs of one method that are not the same line of a picture.
PARTS = ("weighting", "allocation", "update", "training", "storage", "traversal", "calibrated_on", "compresses")


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """One row per run with every single-valued key of its record, and beside them:

    `series`: the line of a picture that the run belongs to. `model_bytes`, `model_bytes_dense`, `target_bytes_dense`:
    the whole model and the targeted layers as a 16-bit checkpoint, whatever format the run computed in.
    `seconds_to_compress`: all stages but loading, evaluation and saving. `acc_mean`: over the tasks of the run.
    `speedup/…`: tokens per second over the dense model's. `calibrated_on`, `compresses`: in a few words.
    """
    rows = pd.DataFrame([_row(record) for record in records])
    for key in rows.select_dtypes("object"):  # a file of columns takes one type in each
        if pd.api.types.infer_dtype(rows[key], skipna=True).startswith("mixed"):
            rows[key] = rows[key].map(str, na_action="ignore")
    rows.insert(0, "series", labels(rows))
    return rows


def _row(record: Record) -> dict[str, Any]:
    row = {key: value for key, value in record.items() if not (isinstance(value, dict | list) or key.startswith(MADE))}
    row.setdefault("traversal", Traversal.dense.value)  # older records do not say; few were anything else
    for part in GROUPS:
        row[part] = in_words(record[part], record.get(f"{part}_options") or {}) if record.get(part) else None
    trained = record.get("training", {})
    said = [in_words(part.get("name", name), part["options"]) for name, part in trained.items()]
    row["training"] = " + ".join(said) or None
    row["seconds_to_compress"] = sum(record.get(f"seconds/{stage}", 0.0) for stage in SECONDS)
    if {"params_dense", "target_bits", "target_bits_dense"} <= record.keys():
        dense, kept, params = (record[key] for key in ("target_bits_dense", "target_bits", "params_dense"))
        if dense > 16 * params:  # versions before 0.1 counted a float32 run's numbers as 32 bits
            dense, kept = dense / 2, kept / 2
        row |= {"model_bytes_dense": 2 * params, "target_bytes_dense": dense / 8}
        row["model_bytes"] = row["model_bytes_dense"] - (dense - kept) / 8
    row |= {f"ppl_bos/{text}": how.get("bos") for text, how in record.get("protocol", {}).items()}
    tasks = [key for key in record if key.startswith("acc/") and key != "acc/average"]
    for kind, prefix in {"acc_mean": "acc/", "acc_mean_dense": "acc_dense/"}.items():
        values = [value for key in tasks if (value := record.get(key.replace("acc/", prefix))) is not None]
        row |= {kind: sum(values) / len(values)} if values else {}
    row["tasks"] = ", ".join(sorted(key.removeprefix("acc/") for key in tasks)) or None
    for phase in ("prefill", "decode"):
        speed, dense = (record.get(f"tokens_per_second/{phase}{suffix}") for suffix in ("", "_dense"))
        if speed and dense:
            row[f"speedup/{phase}"] = speed / dense
    return row | {"calibrated_on": _calibration(record.get("calibration")), "compresses": _targets(record)}


def _calibration(part: Mapping[str, Any] | None) -> str | None:
    return f"{part['text']} {part['samples']}×{part['seq_len']}" if part else None


def _targets(record: Record) -> str:
    """Empty for all linear layers of the blocks."""
    changed = {key: value for key, value in record.get("targets", FULL).items() if value != FULL.get(key)}
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
