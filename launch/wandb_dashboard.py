"""The project's W&B dashboard as a workspace: `python launch/wandb_dashboard.py ENTITY/PROJECT [--print]`.

Its panels name the summary fields that tracker=wandb writes, which are the keys of results.json. Needs the extra
`dashboard` (wandb-workspaces), and a W&B login unless --print only shows what would be sent.
"""

import argparse
import sys
from collections.abc import Sequence

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

LEGEND = "${config:method.name} ${config:ratio}"
PHASES = ("decode", "prefill")


def against(x: str, y: str, title: str, log_y: bool = False) -> wr.ScatterPlot:
    """One point per run: a figure of the compressed model against another."""
    fields = {"x": wr.SummaryMetric(x), "y": wr.SummaryMetric(y), "log_y": log_y}
    return wr.ScatterPlot(title=title, legend_template=LEGEND, **fields)


def bars(metrics: Sequence[str], title: str) -> wr.BarPlot:
    """The means of figures by method."""
    return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(key) for key in metrics], groupby=wr.Config("method.name"))


def dashboard(entity: str, project: str, texts: Sequence[str], tasks: Sequence[str]) -> ws.Workspace:
    """The workspace; nothing is sent."""
    perplexity = [
        against(size, f"ppl/{text}", f"perplexity on {text} against {size}", log_y=True)
        for text in texts
        for size in ("achieved_ratio", "bytes")
    ]
    speed = [
        against(f"tokens_per_second/{phase}", f"ppl/{text}", f"perplexity on {text} against {phase} speed", log_y=True)
        for text in texts
        for phase in PHASES
    ]
    layers = [
        wr.MediaBrowser(title="rank by block and projection", media_keys=["rank_map"], num_columns=3),
        *(
            wr.WeavePanelSummaryTable(table_name=key)
            for key in ("layers", "depth/rank_table", "depth/energy_lost_table")
        ),
    ]
    learned = [
        wr.LinePlot(title=f"learned ranks: {key}", x="learned_ranks/step", y=[f"learned_ranks/{key}"])
        for key in ("perplexity", "ratio")
    ]
    cost = [
        bars([f"seconds/{stage}" for stage in ("calibration", "factorisation", "allocation", "update")], "seconds"),
        bars(["peak_rss_bytes", "peak_device_bytes"], "peak memory, bytes"),
    ]
    sections = {
        "Perplexity": perplexity,
        "Accuracy": [against("achieved_ratio", f"acc/{task}", f"accuracy on {task}") for task in tasks],
        "Throughput": [*speed, bars([f"tokens_per_second/{phase}" for phase in PHASES], "tokens per second")],
        "Layers": layers,
        "Learned ranks": learned,
        "Cost": cost,
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name="svdexp",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
    )


def spec(workspace: ws.Workspace) -> str:
    """What `save` would send, as JSON; the library has no public name for it."""
    text: str = workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return text


def main(words: Sequence[str] | None = None) -> int:
    """Build the dashboard and save it, or print it."""
    parser = argparse.ArgumentParser(prog="python launch/wandb_dashboard.py", description=__doc__)
    parser.add_argument("where", metavar="ENTITY/PROJECT")
    parser.add_argument("--texts", nargs="+", default=["wikitext2", "ptb", "c4"], help="as in eval.texts")
    parser.add_argument("--tasks", nargs="+", default=["average"], help="as in eval.tasks; average: of the seven")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the specification, send nothing")
    options = parser.parse_args(words)
    entity, slash, project = options.where.partition("/")
    if not (entity and slash and project):
        parser.error(f"{options.where} is not ENTITY/PROJECT")
    workspace = dashboard(entity, project, options.texts, options.tasks)
    if options.only_print:
        print(spec(workspace))
    else:
        workspace.save()
        print(workspace.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
