"""The report as files: of a sweep with failures, and of records that lack most figures."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import vl_convert

import svdexp
from svdexp.report.__main__ import main
from svdexp.report.collect import layers, survey
from svdexp.report.curves import CLIP, against_size
from svdexp.report.document import Picture, Section, files
from svdexp.report.frame import labels, tidy
from svdexp.report.front import front
from svdexp.report.heatmap import RankMap, rank_maps
from svdexp.report.panels import perplexity_panels
from svdexp.report.style import number, styles, ticks
from svdexp.report.vega import VERSION, on_paper
from svdexp.runtime.errors import UserError
from tests.report.fake_sweeps import leave, leave_cell

PICTURES = {f"{kind}-llama2-7b" for kind in ("perplexity", "accuracy", "speed", "ranks", "depth")}


def begin(cell: Path, **failure: str) -> None:
    (cell / ".hydra").mkdir(parents=True)
    (cell / ".hydra" / "config.yaml").touch()
    if failure:
        (cell / "failed.json").write_text(json.dumps(failure))


def test_a_sweep_with_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, target = tmp_path / "sweep", tmp_path / "to"
    for ratio in (0.8, 0.6):
        leave_cell(sweep, "kron", ratio, 5.0)
        leave_cell(sweep, "svd", ratio, 1e9)
    begin(sweep / "died")
    begin(sweep / "failed", error="UserError: ratio=0.01 <too small>")
    assert main([str(sweep), "--to", str(target)]) == 0
    assert capsys.readouterr().out == f"4 runs, 2 cells without results: {target}/report.html\n"
    pictures = {path.name for path in (target / "pictures").iterdir()}
    assert pictures == {f"{name}.{kind}" for name in PICTURES for kind in ("svg", "pdf", "png")}
    tables = {path.name for path in (target / "tables").iterdir()}
    assert {"perplexity-on-wiki-100-000-tokens-llama2-7b.csv", "accuracy-by-task-llama2-7b.tex"} < tables
    assert len({Path(name).stem for name in tables}) == len(tables) / 2

    text = (target / "report.md").read_text()
    assert f"| {sweep}/failed | failed: UserError: ratio=0.01 &lt;too small&gt; |" in text
    assert f"| {sweep}/died | unfinished: neither results nor an error |" in text
    assert "| llama2-7b | wiki, 100,000 tokens | 0.6 | kron | 10.8 | 1.80 | 0.528 | -0.156 | 8.8 |" in text
    assert "wiki, 100,000 tokens, svd at 0.6: 9.6e8" in text
    assert set(re.findall(r"\]\((.*?)\)", text)) == {f"pictures/{name}.png" for name in PICTURES}

    page = (target / "report.html").read_text()
    assert "ratio=0.01 &lt;too small&gt;" in page
    head, _, rest = page.partition('<script type="module">')
    assert set(re.findall(r'href="(?!#)(.*?)"', head)) == {
        *(f"../sweep/{method}_{ratio}" for method in ("kron", "svd") for ratio in (0.6, 0.8))
    }
    assert not re.search(r"\ssrc=|@import|url\(", head)
    assert rest.count("</script>") == 1
    assert len(page) < 1.5e6

    rows = pd.read_parquet(target / "results.parquet")
    numbers = rows.select_dtypes("number")
    assert len(numbers.columns) > 25
    pd.testing.assert_frame_equal(pd.read_csv(target / "results.csv")[numbers.columns], numbers)
    assert rows.loc[rows["method"] == "kron", "model_bytes"].tolist() == [11.4e9, 8.8e9]
    assert rows.loc[0, "ppl/wiki"] == survey([sweep])[0][0]["ppl/wiki"]


def test_a_picture_is_drawn_once_and_turned_into_three_kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn, draw = [], vl_convert.vegalite_to_svg
    monkeypatch.setattr(vl_convert, "vegalite_to_svg", lambda *args, **how: drawn.append(args) or draw(*args, **how))
    rows = [{"projection": "up", "block": block, "rank": 3, "m": 8, "n": 9} for block in range(2)]
    picture = Picture("it", "what it is", rank_maps({"kron 0.8": RankMap.of(rows)}, columns=1))
    for name, write in files([Section("title", pictures=[picture])]).items():
        write(tmp_path / Path(name).name)
    assert (tmp_path / "it.svg").read_text().startswith("<svg")
    assert (tmp_path / "it.pdf").read_bytes().startswith(b"%PDF")
    whole = vl_convert.vegalite_to_png(on_paper(picture.plot), vl_version=VERSION, scale=2, ppi=72)
    assert (tmp_path / "it.png").read_bytes() == whole
    assert len(drawn) == 1


def test_records_that_lack_most_figures(tmp_path: Path) -> None:
    leave(tmp_path / "runs" / "a", ratio=0.4, **{"ppl/x": 30.0})
    leave(tmp_path / "runs" / "b", ratio=0.8)
    (tmp_path / "runs" / "a" / "ranks.json").write_text('{"h.0.attn.q": 3, "h.1.attn.q": null, "head": 9}')
    assert main([str(tmp_path / "runs"), "--to", str(tmp_path / "to")]) == 0
    assert {path.name for path in (tmp_path / "to" / "pictures").glob("*.png")} == {"ranks-m.png"}


def test_models_as_they_are_alone_make_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("one", 10.0), ("two", 11.0)):
        (tmp_path / name).mkdir()
        figures = {"ppl/wiki": value, "ppl_stderr/wiki": 0.1, "acc/piqa": 0.5, "params": 1000, "bytes": 2000}
        about = {"model": "tiny", "model_path": f"/models/{name}", "seconds/load": 1.0}
        (tmp_path / name / "results.json").write_text(json.dumps(about | figures))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("| tiny |") == 2
    assert main([str(tmp_path), "--to", str(tmp_path / "to")]) == 0
    assert "0 runs, 0 cells without results, 2 models as they are: " in capsys.readouterr().out
    text = (tmp_path / "to" / "report.md").read_text()
    assert "| one (as it is) | 10.00 ± 0.10 at 2 kB |" in text
    assert "Best per ratio" not in text
    assert list(svdexp.read(tmp_path)["series"]) == ["one (as it is)", "two (as it is)"]


def test_a_speed_inside_the_spread_is_called_even(tmp_path: Path) -> None:
    near = {"tokens_per_second/decode": 39.0, "speed_spread/decode": 0.1, "speed_spread_dense/decode": 0.0}
    leave_cell(tmp_path, "kron", 0.8, 5.0, **near)
    leave_cell(tmp_path, "kron", 0.6, 5.0, **{"tokens_per_second/decode": 39.0})
    assert main([str(tmp_path), "--to", str(tmp_path / "to")]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    assert text.count(" 0.97, even |") == 3  # best per ratio of both texts, and all runs
    assert text.count(" 0.97 |") == 3
    assert '"speed":"0.97, even"' in (tmp_path / "to" / "report.html").read_text()


def test_a_sweep_that_failed_altogether_says_why(tmp_path: Path) -> None:
    begin(tmp_path / "0", error="no CUDA")
    with pytest.raises(UserError, match="1 cells have none, the first failed: no CUDA"):
        survey([tmp_path])


def test_lines_are_called_by_what_tells_them_apart() -> None:
    rows = pd.DataFrame(
        {
            "label": ["m"] * 5,
            "method": ["kron", "kron", "kron", "asvd", "asvd"],
            "storage": ["factors", "pivot", "pivot", "factors", "factors"],
            "weighting": ["W"] * 3 + ["D(alpha=0.5, scale=s)", "D(alpha=1, scale=s)"],
            "update": [None, None, "Ipca", None, None],
        }
    )
    assert labels(rows) == [
        "kron · factors",
        "kron · pivot",
        "kron · Ipca · pivot",
        "asvd · D alpha=0.5",
        "asvd · D alpha=1",
    ]


def test_different_protocols_share_no_panel(tmp_path: Path) -> None:
    leave_cell(tmp_path, "kron", 0.8, 5.0)
    leave_cell(tmp_path, "svd", 0.8, 5.0, **{"ppl_tokens/wiki": 7})
    panels = perplexity_panels(tidy(survey([tmp_path])[0]))
    assert [panel.title for panel in panels] == ["ptb, 100,000 tokens", "wiki, 7 tokens", "wiki, 100,000 tokens"]
    assert [len(panel.rows) for panel in panels] == [2, 1, 1]


def test_bos_in_other_places_shares_no_panel(tmp_path: Path) -> None:
    """Windows with and without BOS have equally many tokens that count."""
    for method, bos in {"kron": "every", "svd": "none", "fwsvd": "every"}.items():
        leave_cell(tmp_path, method, 0.8, 5.0, protocol={"wiki": {"bos": bos}})
    panels = [panel for panel in perplexity_panels(tidy(survey([tmp_path])[0])) if panel.key == "ppl/wiki"]
    assert [panel.title for panel in panels] == ["wiki, 100,000 tokens, BOS every", "wiki, 100,000 tokens"]
    assert [len(panel.rows) for panel in panels] == [2, 1]


def test_huge_perplexities_do_not_squash_the_others(tmp_path: Path) -> None:
    leave_cell(tmp_path, "kron", 0.8, 5.0)
    leave_cell(tmp_path, "svd", 0.8, 1e9)
    frame = tidy(survey([tmp_path])[0])
    looks = styles(zip(frame["series"], frame["method"], strict=True))
    plot = against_size(perplexity_panels(frame), "perplexity", looks, CLIP)
    ptb = plot.panels[0]
    assert ptb["layer"][0]["encoding"]["y"]["scale"]["domain"][1] == pytest.approx(1.1 * CLIP * 20)
    drawn = [row for layer in ptb["layer"] for row in layer["data"]["values"] if row.get("series") == "svd"]
    assert max(row["y"] for row in drawn) == CLIP * 20
    assert plot.notes == ["ptb, 100,000 tokens, svd at 0.8: 8e8", "wiki, 100,000 tokens, svd at 0.8: 2.4e8"]


def test_the_best_at_each_size_are_joined(tmp_path: Path) -> None:
    """From the smallest run to the dense model: those that no smaller run equals."""
    for method, ratio, factor in (("kron", 0.4, 4.0), ("kron", 0.8, 2.0), ("svd", 0.6, 10.0), ("svd", 0.7, 3.0)):
        leave_cell(tmp_path, method, ratio, factor)
    frame = tidy(survey([tmp_path])[0])
    looks = styles(zip(frame["series"], frame["method"], strict=True))
    for panel in against_size(perplexity_panels(frame), "perplexity", looks, CLIP).panels:
        (joined,) = [layer for layer in panel["layer"] if layer["mark"].get("style") == "front"]
        points = joined["data"]["values"]
        sizes, heights = [point["x"] for point in points], [point["y"] for point in points]
        assert len(points) == 4
        assert sizes == sorted(sizes)
        assert heights == sorted(heights, reverse=True)
        assert min(heights) == points[-1]["y"]  # the dense model


@pytest.mark.parametrize(("low", "high"), [(5.3, 16), (17, 1800), (5, 5.4), (0.001, 3e8), (19, 60)])
def test_axes_have_readable_ticks(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 13
    assert all(low <= tick <= high for tick in found)


def test_numbers_are_short() -> None:
    assert [number(x) for x in (17.834, 0.25, 2500, 1e6, 3.21e8)] == ["17.8", "0.25", "2,500", "1e6", "3.2e8"]


def test_the_front_is_what_no_other_beats_in_both() -> None:
    rng = np.random.default_rng(0)
    speed, perplexity = rng.random(60).round(1).tolist(), rng.random(60).round(1).tolist()
    found = front(speed, perplexity)
    for i in range(60):
        beaten = any(
            speed[j] >= speed[i]
            and perplexity[j] <= perplexity[i]
            and (speed[j], perplexity[j]) != (speed[i], perplexity[i])
            for j in range(60)
        )
        at = (speed[i], perplexity[i])
        assert beaten != (at in {(speed[j], perplexity[j]) for j in found})


def test_a_map_of_ranks(tmp_path: Path) -> None:
    rows = layers(leave_cell(tmp_path, "kron", 0.5, 1.0))
    found = RankMap.of([*rows, {"name": "head", "block": None, "projection": "head", "rank": 1}])
    assert found.ranks.shape == (3, 32)
    assert found.dense[:, 0].all()
    assert not found.dense[:, 1:].any()
    assert found.ranks[0, 16] == int(1024 * 0.8)
    assert found.full[0, 16] == 4096
