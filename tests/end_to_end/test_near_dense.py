"""ppl=1.05x: the smallest size at which the perplexity is near the dense model's, as a command and from Python."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import svdexp
from tests.conftest import tiny_tokenizer
from tests.end_to_end.conftest import Svdexp, read


def test_a_run_finds_its_ratio_and_says_how(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    words = [*tiny_job, "eval.efficiency=null", "save=none", "precision=float32"]
    result = svdexp_command(*words, "ppl=1.002x", "hydra.run.dir=near")
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    assert "to 1.002x the dense perplexity, in near" in said
    assert "sizes tried" in said
    assert "ratio 0.51 tried: " in said
    assert "files" in said
    found = read(tmp_path / "near")
    how = found["search"]
    tried = dict(how["tried"])
    assert how["text"] == "files"
    assert how["factor"] == 1.002
    assert how["dense"] == found["ppl_dense/files"]
    assert tried[found["ratio"]] == found["ppl/files"] <= 1.002 * found["ppl_dense/files"]
    below = tried[round(found["ratio"] - 0.01, 2)]
    assert below is None or below > 1.002 * found["ppl_dense/files"]
    assert len(list((tmp_path / "outputs" / "cache" / "perplexity").iterdir())) == 1 + len(
        {value for value in tried.values() if value is not None}
    )

    again = svdexp_command(*words, f"ratio={found['ratio']}", "hydra.run.dir=known")
    assert again.returncode == 0, again.stderr
    known = read(tmp_path / "known")
    assert "search" not in known
    assert known["ppl/files"] == found["ppl/files"]
    assert known["target_bits"] == found["target_bits"]
    assert json.loads((tmp_path / "known/ranks.json").read_text()) == json.loads(
        (tmp_path / "near/ranks.json").read_text()
    )


def test_the_estimate_counts_what_is_tried(svdexp_command: Svdexp, tiny_job: list[str]) -> None:
    result = svdexp_command(*tiny_job, "ppl=1.05x", "dry_run=true")
    assert result.returncode == 0, result.stderr
    assert "search" in result.stdout
    assert "search" not in svdexp_command(*tiny_job, "dry_run=true").stdout


def test_a_sweep_over_how_near(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    words = [*tiny_job, "eval.efficiency=null", "hydra.sweep.dir=sweep"]
    result = svdexp_command("-m", *words, "ppl=1.01x,1.1x")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name.rpartition("_")[0] for path in (tmp_path / "sweep").glob("ppl*")) == [
        "ppl-1.01x",
        "ppl-1.1x",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ppl=1.05"], "ppl=1.05 is no factor: 1.05x is at most 1.05 times the dense model's perplexity"),
        (["ppl=0.9x"], "ppl=0.9x: a compressed model cannot be asked to be better than the dense one"),
        (["ppl=1.05x", "ratio=0.5"], "ratio and ppl both say how small the model shall be: give one of them"),
        (["ppl=1.05x", "bytes=0.5"], "bytes and ppl both say how small the model shall be: give one of them"),
        (["ppl_text=files"], "ppl_text says what ppl is measured on: give ppl, too"),
        (["ppl=1.05x", "ppl_text=pydoc"], "ppl_text=pydoc is not in eval.texts, which has files"),
        (["ppl=1.05x", "eval.texts=[]", "eval.files=[]"], "ppl is measured on a text: eval.texts has none"),
        (["ppl=1.05x", "method/training=distill"], "method.training: ppl tries several sizes"),
        (["ppl=1.05x", "method=quantise"], "ppl has no sizes to choose from"),
        (["ppl=1.05x", "residency=streamed", "eval.efficiency=null"], "ppl tries sizes on the whole model"),
        (["-m", "ppl=1.05x", "ratio=0.5,0.6"], "ratio and ppl both say how small the model shall be"),
    ],
)
def test_a_mistake_is_one_sentence(
    svdexp_command: Svdexp, tiny_job: list[str], words: list[str], sentence: str, tmp_path: Path
) -> None:
    sweep = ["-m"] if words[0] == "-m" else []
    result = svdexp_command(*sweep, *tiny_job, *words[len(sweep) :])
    assert result.returncode == 1
    assert sentence in result.stderr
    assert not list(tmp_path.rglob("results.json"))


def test_from_python_it_is_the_same(
    svdexp_command: Svdexp,
    tiny_job: list[str],
    model_folder: Path,
    text_file: Path,
    other_text_file: Path,
    tmp_path: Path,
) -> None:
    done = svdexp_command(*tiny_job, "eval.efficiency=null", "ppl=1.002x", "precision=float32", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    run = read(tmp_path / "run")
    tokens = tiny_tokenizer()(other_text_file.read_text(), return_tensors="pt")["input_ids"][0, : 4 * 32].view(4, 32)
    result = svdexp.compress(
        model_folder, text_file, ppl="1.002x", ppl_text=tokens, samples=4, seq_len=32, precision="float32"
    )
    assert result.compression.search
    assert result.compression.search.wanted.text == "given"
    assert result.compression.search.ratio == run["ratio"]
    assert result.ranks == json.loads((tmp_path / "run/ranks.json").read_text())
    assert result.config.ppl == "1.002x"
    folder = result.save(tmp_path / "saved")
    assert json.loads((folder / "results.json").read_text())["search"]["factor"] == 1.002


def test_python_says_what_is_wrong_in_a_sentence(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    def fails(words: str, calibration: object = text_file, **options: object) -> None:
        with pytest.raises(svdexp.UserError, match=words):
            svdexp.compress(model_folder, calibration, **{"samples": 4, "seq_len": 32, **options})  # type: ignore[arg-type]

    text = text_file.read_text()
    fails("give one of them, once", ppl="1.05x", ratio=0.5)
    fails("ppl=1.05 is no factor", ppl="1.05")
    long = Path(shutil.copy(text_file, tmp_path / "long.txt"))
    long.write_text(3 * text)
    fails("calibration.files and eval.files", long, ppl="1.05x", ppl_text=long)
    fails("holds all of it, so it cannot judge", [text], seq_len=80, ppl="1.05x", ppl_text=text[: len(text) // 40])
    fails("one text that perplexity is measured on", ppl="1.05x", ppl_text={"one": text[:200], "two": text[200:400]})
    fails("ppl_text says what ppl is measured on", ppl_text=torch.ones(2, 8, dtype=torch.long))
    fails("ppl has no effect here; it is an argument", overrides=["ppl=1.05x"])
