"""Random questions in both layouts: that of lm-eval's data sets on the hub, and ours for local files."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import yaml

from svdexp.evaluation.tasks import TASKS
from tests.conftest import WORDS

Row = dict[str, Any]
LETTERS = "abcde"
SUBJECTS = ("anatomy", "us_foreign_policy")


def phrase(draw: random.Random, longest: int = 6) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def question(name: str, draw: random.Random) -> tuple[Row, Row]:
    """One row of task `name`: as on the hub, and in our layout."""
    ask, choices = f"{phrase(draw)}?", [phrase(draw) for _ in range(5 if name == "mathqa" else 4)]
    right = draw.randrange(len(choices))
    local: Row = {"question": ask, "choices": choices, "answer": right}
    labels = {"text": choices, "label": ["1", "2", "3", "4"]}
    match name:
        case "arc_easy" | "arc_challenge":
            return {"question": ask, "choices": labels, "answerKey": str(right + 1)}, local
        case "openbookqa":
            return {"question_stem": ask, "choices": labels, "answerKey": str(right + 1)}, local
        case "mathqa":
            options = " , ".join(f"{LETTERS[i]} ) {choice}" for i, choice in enumerate(choices))
            return {"Problem": ask, "options": options, "correct": LETTERS[right]}, local
        case "hellaswag":
            start, end = f"{phrase(draw)}.", phrase(draw)
            hub = {"activity_label": "Rank", "ctx_a": start, "ctx_b": end, "endings": choices, "label": str(right)}
            return hub, {"query": f"Rank: {start} {end}", "choices": choices, "answer": right}
        case "piqa":
            row = {"goal": ask, "sol1": choices[0], "sol2": choices[1], "label": right % 2}
            return row, row
        case "winogrande":
            words = dict(zip(("option1", "option2"), choices, strict=False))
            row = {"sentence": f"{phrase(draw)} _ {phrase(draw)}.", **words, "answer": str(1 + right % 2)}
            return row, row
        case "mmlu":
            row = {"subject": draw.choice(SUBJECTS), **local}
            return row, row
        case _:
            row = {"passage": phrase(draw, 20), "question": phrase(draw), "label": right % 2}
            return row, row


def questions(name: str, count: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """`count` rows of task `name` in both layouts."""
    draw = random.Random(f"{name} {seed}")
    pairs = [question(name, draw) for _ in range(count)]
    return [hub for hub, _ in pairs], [local for _, local in pairs]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_local(folder: Path, names: Sequence[str], count: int, dev: int = 0) -> Path:
    """FOLDER/NAME/test.jsonl, and dev.jsonl with other rows."""
    for name in names:
        write_rows(folder / name / "test.jsonl", questions(name, count)[1])
        if dev:
            write_rows(folder / name / "dev.jsonl", questions(name, dev, seed=1)[1])
    return folder


def write_hub(folder: Path, names: Sequence[str], count: int, dev: int = 0) -> Path:
    """lm-eval's own tasks as hub_NAME, pointed at files with the same rows in the hub's layout."""
    for name in names:
        splits = {"test": questions(name, count)[0]} | ({"train": questions(name, dev, seed=1)[0]} if dev else {})
        for part, rows in parts(name, splits).items():
            files = {split: str(write_rows(folder / f"{part}.{split}.jsonl", rows[split])) for split in rows}
            original = Path(lm_eval.__file__).parent / "tasks" / TASKS[name].folder / f"{part}.yaml"
            text = {
                "include": str(original if original.exists() else original.with_name("default.yaml")),
                "task": f"hub_{part}",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": files},
                "training_split": "train" if dev else None,
                "validation_split": None,
                "test_split": "test",
            }
            if name == "mmlu":
                text |= {"training_split": None, "fewshot_split": "train" if dev else "test"}
            (folder / f"hub_{part}.yaml").write_text(yaml.safe_dump(text))
    return folder


def parts(name: str, splits: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, list[Row]]]:
    """Rows of each split by lm-eval's name of the task that asks them."""
    if name != "mmlu":
        return {name: {split: list(rows) for split, rows in splits.items()}}
    return {
        f"mmlu_{subject}": {split: [r for r in rows if r["subject"] == subject] for split, rows in splits.items()}
        for subject in SUBJECTS
    }
