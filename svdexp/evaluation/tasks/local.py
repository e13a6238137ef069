"""Tasks over local files, in lm-eval's own wording: FOLDER/NAME/test.jsonl or .jsonl.gz, one row a line.

Prompts, choices and metrics are those of the task of the same name in lm-eval 0.4, so that figures agree with it on
the same rows (tests/evaluation/test_tasks.py holds both against each other). Few-shot examples come from
NAME/dev.jsonl.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import parse_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Wording:
    """What a row of a task holds, and how lm-eval asks it.

    Attributes:
        keys: of a row; others are ignored.
        accepts: whether the values of those keys can be asked.
        options: of lm-eval's TaskConfig.
        metrics: what is counted; acc_norm divides log-likelihoods by the choices' lengths in characters.
        version: of lm-eval's task.
        parts: the key whose values split the task, or None.
    """

    keys: tuple[str, ...]
    accepts: Callable[[Row], bool]
    options: Mapping[str, Any]
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    version: float = 1.0
    parts: str | None = None
    describe: Callable[[str], str] = field(default=lambda part: "")


def find_file(folder: Path, name: str, split: str) -> Path | None:
    """NAME/SPLIT.jsonl or its .gz below `folder`, or None."""
    for ending in ("jsonl", "jsonl.gz"):
        if (path := folder / name / f"{split}.{ending}").is_file():
            return path
    return None


def read_rows(name: str, path: Path) -> list[Row]:
    """The rows of task `name` in a file of JSON lines.

    Raises:
        UserError: the file is unreadable or empty, or a line is no row of this task.
    """
    wording, rows = WORDINGS[name], []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = parse_json(line, f"{path}, line {number}")
                    if not isinstance(row, dict) or not row.keys() >= set(wording.keys) or not wording.accepts(row):
                        raise UserError(f"{path}, line {number}: no row of {name}, which is {', '.join(wording.keys)}")
                    rows.append({key: row[key] for key in wording.keys})
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def local_parts(name: str, test: Path, dev: Path | None) -> dict[str, Any]:
    """lm-eval's task objects over local rows: one called `name`, or one per part.

    Args:
        name: the task.
        test: the file that is evaluated.
        dev: the file that gives few-shot examples, or None.

    Raises:
        UserError: as in `read_rows`.
    """
    from lm_eval.api.task import ConfigurableTask

    splits = {"test": by_part(name, read_rows(name, test)), "dev": by_part(name, read_rows(name, dev)) if dev else {}}
    return {
        part: ConfigurableTask(config=task_config(name, part, rows, splits["dev"].get(part, [])))
        for part, rows in splits["test"].items()
    }


def by_part(name: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the name of lm-eval's task that asks them: mmlu_SUBJECT for MMLU, else the task itself."""
    key = WORDINGS[name].parts
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(f"{name}_{row[key]}" if key else name, []).append(row)
    return parts


def task_config(name: str, part: str, test: Sequence[Row], dev: Sequence[Row]) -> dict[str, Any]:
    """The keyword arguments of lm-eval's TaskConfig."""
    from datasets import Dataset

    wording = WORDINGS[name]
    rows = {"test": Dataset.from_list(list(test))} | ({"dev": Dataset.from_list(list(dev))} if dev else {})
    return {
        "task": part,
        "custom_dataset": lambda **_: rows,
        "test_split": "test",
        "fewshot_split": "dev" if dev else None,
        "output_type": "multiple_choice",
        "description": wording.describe(part),
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in wording.metrics],
        "metadata": {"version": wording.version},
        **wording.options,
    }


def is_question(row: Row) -> bool:
    """Whether `row` has choices and the index of the right one."""
    choices, answer = row["choices"], row["answer"]
    return (
        isinstance(choices, list)
        and all(isinstance(choice, str) and choice for choice in choices)
        and type(answer) is int
        and 0 <= answer < len(choices)
        and all(isinstance(value, str) for key, value in row.items() if key in ("question", "query", "subject"))
    )


def is_goal(row: Row) -> bool:
    """Whether `row` has a goal, two solutions and the index of the better one."""
    return all(isinstance(row[key], str) and row[key] for key in ("goal", "sol1", "sol2")) and row["label"] in (0, 1)


def is_blank(row: Row) -> bool:
    """Whether `row` has a sentence with a blank, two words for it and the number of the right one."""
    texts = all(isinstance(row[key], str) for key in ("sentence", "option1", "option2"))
    return texts and "_" in row["sentence"] and row["answer"] in ("1", "2")


def is_passage(row: Row) -> bool:
    """Whether `row` has a passage, a question about it and 0 for no, 1 for yes."""
    return all(isinstance(row[key], str) for key in ("passage", "question")) and row["label"] in (0, 1)


def fill_blank(row: Row) -> list[str]:
    """The sentence up to its blank with either word: two contexts for one continuation."""
    before = row["sentence"].partition("_")[0]
    return [before + row["option1"], before + row["option2"]]


def after_blank(row: Row) -> str:
    """The rest of the sentence, which both contexts are judged by."""
    return str(row["sentence"].partition("_")[2].strip())


def right_word(row: Row) -> int:
    """The index of the right word."""
    return int(row["answer"]) - 1


def finish_me(row: Row) -> str:
    """The query as lm-eval asks it: the beginning of the sentence that the choices complete is capitalised."""
    return re.sub(r"(?<=[.!?] )[a-z](?=[^.!?]*$)", lambda match: match[0].upper(), row["query"])


def about(part: str) -> str:
    """MMLU's first line, with the subject's name."""
    subject = part.removeprefix("mmlu_").replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


QUESTION = ("question", "choices", "answer")
ANSWER = {"doc_to_choice": "choices", "doc_to_target": "answer"}
ASKED = Wording(QUESTION, is_question, {"doc_to_text": "Question: {{question}}\nAnswer:", **ANSWER})

WORDINGS = {
    "arc_easy": ASKED,
    "arc_challenge": ASKED,
    "mathqa": ASKED,
    "openbookqa": Wording(QUESTION, is_question, {"doc_to_text": "question", **ANSWER}),
    "hellaswag": Wording(("query", "choices", "answer"), is_question, {"doc_to_text": finish_me, **ANSWER}),
    "piqa": Wording(
        ("goal", "sol1", "sol2", "label"),
        is_goal,
        {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_choice": "{{[sol1, sol2]}}", "doc_to_target": "label"},
    ),
    "winogrande": Wording(
        ("sentence", "option1", "option2", "answer"),
        is_blank,
        {"doc_to_text": right_word, "doc_to_choice": fill_blank, "doc_to_target": after_blank},
        metrics=("acc",),
    ),
    "mmlu": Wording(
        ("subject", *QUESTION),
        lambda row: is_question(row) and len(row["choices"]) == 4,
        {
            "doc_to_text": "{{question.strip()}}\n"
            "A. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "fewshot_config": {"sampler": "first_n"},
        },
        metrics=("acc",),
        parts="subject",
        describe=about,
    ),
    "boolq": Wording(
        ("passage", "question", "label"),
        is_passage,
        {
            "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
            "doc_to_choice": ["no", "yes"],
            "doc_to_target": "label",
        },
        metrics=("acc",),
        version=2.0,
    ),
}
