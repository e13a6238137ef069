"""The protocol of every perplexity stands in results.json, and mistakes in it are one sentence."""

from pathlib import Path

from tests.end_to_end.conftest import Svdexp, read


def test_results_say_how_they_were_measured(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    words = ["eval.stride=8", "eval.bos=every", "save=none", "hydra.run.dir=here", r'eval.separator="\n"', "method=svd"]
    done = svdexp_command(*tiny_job, *words)
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "here")
    protocol = results["protocol"]["files"]
    assert protocol | {"dataset": ""} == {
        "preset": "quick",
        "dataset": "",
        "split": "all",
        "rows": 1,
        "separator": "\n",
        "cut": "contiguous",
        "seq_len": 32,
        "stride": 8,
        "bos": "every",
        "special_tokens": "text",
        "windows": 4,
        "tokens": 31 + 3 * 8,
    }
    assert results["ppl_tokens/files"] == results["ppl_tokens_dense/files"] == protocol["tokens"]
    assert results["ppl_stderr/files"] > 0
    assert results["calibration_bos"] == "none"  # what the tokenizer's own way comes to


def test_the_former_switch_for_bos_is_answered_with_the_choices(svdexp_command: Svdexp) -> None:
    done = svdexp_command("eval.bos=true")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for word in ("eval.bos=true", "none, every, start, tokenizer"):
        assert word in done.stderr


def test_a_split_that_calibrates_is_refused_at_once(svdexp_command: Svdexp) -> None:
    done = svdexp_command("eval=ppl", "+eval.split_by_text.wikitext2=train")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("svdexp: eval.split_by_text.wikitext2: train is no split that evaluates")
