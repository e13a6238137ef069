"""The model card of a compressed model: README.md as a hub shows it, written from a run's record."""

import re
from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCardData

from svdexp.cells.choices import GROUPS, modern, spoken
from svdexp.export.origin import Origin
from svdexp.models.matrices import Ranks
from svdexp.record import Record, Results, compared
from svdexp.record import results as keys
from svdexp.runtime.markdown import code, fenced, in_line, table
from svdexp.runtime.version import __version__
from svdexp.schema import Format
from svdexp.tracking.console import beside_dense, is_one_of

BARS = "▁▂▃▄▅▆▇█"
# What a model keeps, but for rounding, when its layers take another form.
KEPT = (keys.PPL, keys.ACC, keys.ACC_NORM)
OTHERWISE = {
    Format.hf: "",
    Format.dense: "The compressed model was measured before its factors were multiplied out, which only rounds; "
    "this folder's speed and size are the dense model's.",
    Format.gptq: "The codes are those that were measured; speed and size are those of the kernels that read them.",
    Format.vllm: "The products are those that were measured; speed and size are those of plain factors in vLLM.",
    Format.peft: "The sums are those that were measured; speed and size are those of a dense model with an adapter.",
    Format.compressed_tensors: "The codes are those that were measured; speed and size are those of what reads them.",
    Format.gguf: "llama.cpp rounds inputs to 8 bits, too; speed and size are those of its kernels.",
}
USE = {
    Format.hf: """Plain transformers loads it; `trust_remote_code=True` lets it run the Python files of this folder,
which put low-rank layers into the architecture. `import svdexp`, where it is installed, does the same without running
them. With neither it would fill these layers with random numbers.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    Format.dense: """The factors are multiplied out: this is a dense model of the original architecture and of its size,
and computes what the compressed one does, but for rounding.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    Format.gptq: """The codes are in AutoGPTQ's layout: transformers loads them where the packages `gptqmodel` and
`optimum` are installed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    Format.vllm: """vLLM runs it by its transformers backend; `trust_remote_code` lets it run the Python files of this
folder, which put low-rank layers into the architecture. Plain transformers loads it, too.

```
vllm serve FOLDER --trust-remote-code
```

```python
from vllm import LLM, SamplingParams

llm = LLM("FOLDER", trust_remote_code=True)
print(llm.generate("Once upon a time", SamplingParams(temperature=0))[0].outputs[0].text)
```""",
    Format.peft: """The folder holds what the codes stand for as numbers: a dense model of the original architecture.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    Format.compressed_tensors: """The codes are in compressed-tensors' pack-quantized layout: transformers loads them
where the package `compressed-tensors` is installed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    Format.gguf: """llama.cpp loads `model.gguf`, and where there is a `lora.gguf`, the corrections that belong to it:

```sh
llama-cli -m FOLDER/model.gguf --lora FOLDER/lora.gguf   # without --lora where there is none
```

or in Python, by the package `llama-cpp-python`:

```python
from llama_cpp import Llama

model = Llama("FOLDER/model.gguf", lora_path="FOLDER/lora.gguf")  # without lora_path where there is none
```""",
}


WITH_ADAPTER = """What is measured below has the corrections in `adapter/`, which peft adds:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "FOLDER/adapter")
```"""


def card(
    origin: Origin | None,
    ranks: Ranks,
    shapes: Mapping[str, tuple[int, int]],
    results: Results | None,
    form: Format = Format.hf,
    sees: bool = False,
    notes: str = "",
) -> str:
    """The card.

    Args:
        origin: the dense model, if it is known.
        ranks: of every layer that could have been compressed; None is dense.
        shapes: (m, n) of these layers.
        results: the run's record, if there is one.
        form: what the folder holds.
        sees: whether the model reads images.
        notes: what else is to be said of the files.
    """
    name = origin.name if origin else "a language model"
    size = f" to {keys.ACHIEVED_RATIO.of(results):.1%} of the bits of its compressed layers" if results else ""
    how = f"compressed{size} by low-rank factorisation of its linear layers with svdexp {__version__}"
    again = ", and multiplied out to its own size again" if form is Format.dense else ""
    parts = [
        f"---\n{_data(origin, sees)}\n---",
        f"# {in_line(name)}, compressed",
        f"{code(name)}, {how}{again}.",
        f"## Use\n\n{use(form, sees)}",
        *([notes] if notes else []),
        *([] if results is None else [_making(modern(results)), _measured(results, form)]),
        _plot(ranks, shapes),
        _licence(origin),
    ]
    return "\n\n".join(parts) + "\n"


def use(form: Format, sees: bool) -> str:
    """How the folder is opened."""
    if not sees:
        return USE[form]
    seen = USE[form].replace("AutoModelForCausalLM", "AutoModelForImageTextToText")
    return seen.replace("AutoTokenizer", "AutoProcessor").replace("tokenizer = ", "processor = ")


def _data(origin: Origin | None, sees: bool) -> str:
    """The card's metadata, YAML."""
    data = ModelCardData(
        base_model=origin.repository if origin else None,
        license=origin.licence if origin else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["svdexp", "low-rank", "compression"],
    )
    return data.to_yaml()


def _making(results: Record) -> str:
    rows: list[tuple[str, object]] = [("method", keys.METHOD.of(results))]
    rows += [*((key, said) for key in GROUPS if (said := spoken(results, key)))]
    rows += [("kept, asked for", keys.RATIO.of(results))]
    rows += [("kept, achieved", f"{keys.ACHIEVED_RATIO.of(results):.4f}")]
    text = keys.CALIBRATION.of(results)
    rows += [("calibration text", f"{text['text']}, {text['samples']} × {text['seq_len']} tokens, {text['sampling']}")]
    rows += [("BOS in its windows", bos)] if (bos := keys.CALIBRATION_BOS.get(results)) else []
    rows += [("layers", f"{key}: {value}") for key, value in keys.TARGETS.of(results).items() if value]
    rows += [("seed", keys.SEED.of(results)), ("commit", keys.COMMIT.of(results) or "an installed release")]
    rows += [("versions", ", ".join(f"{package} {version}" for package, version in keys.VERSIONS.of(results).items()))]
    asked = keys.COMMAND.get(results)
    command = [] if asked is None else [fenced(f"python -m svdexp {asked}".rstrip())]
    return "\n\n".join(["## How it was made", *command, table([["", ""], *([str(c) for c in row] for row in rows)])])


def _measured(results: Record, form: Format) -> str:
    """Dense beside compressed; of another form than the one that was measured, what its numbers keep."""
    rows = [
        beside_dense(results, key, dense)
        for key, dense in compared(results).items()
        if form is Format.hf or is_one_of(key, KEPT)
    ]
    where = f"Measured in {keys.DTYPE.of(results)} on {keys.DEVICE.of(results)}, both models in one run."
    where = f"{where} {OTHERWISE[form]}".strip()
    texts = [
        f"`{keys.PPL.at(text)}`: {how['windows']} windows of {how['seq_len']} tokens, {how['split']}, BOS {how['bos']}"
        f"{', special tokens parsed' if how.get('special_tokens') == 'parsed' else ''}."
        for text, how in (keys.PROTOCOL.get(results) or {}).items()
    ]
    measured = [table([["", "dense", "compressed", "change"], *rows])] if rows else []
    return "\n\n".join(["## Measured", *measured, in_line(" ".join([where, *texts]))])


def _plot(ranks: Ranks, shapes: Mapping[str, tuple[int, int]]) -> str:
    """Ranks as bars: one row for the layers of one name, one bar a block."""
    rows: dict[str, list[str]] = {}
    for name in ranks:
        rows.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    width = max(map(len, rows), default=0)
    lines = [f"{row:{width}}  {_bars(names, ranks, shapes)}" for row, names in rows.items()]
    legend = "One bar a block, from no rank at all to full rank; `|` is a layer that stayed dense."
    return "\n\n".join(["## Ranks", legend, fenced("\n".join(lines))])


def _bars(names: Sequence[str], ranks: Ranks, shapes: Mapping[str, tuple[int, int]]) -> str:
    """The bars of some layers, and the smallest and the largest rank among them."""
    bars = ""
    for name in names:
        rank = ranks[name]
        bars += "|" if rank is None else BARS[min(len(BARS) * rank // min(shapes[name]), len(BARS) - 1)]
    known = [rank for name in names if (rank := ranks[name]) is not None]
    full = " or ".join(str(width) for width in sorted({min(shapes[name]) for name in names}))
    return f"{bars}  " + (f"{min(known)} to {max(known)} of {full}" if known else "dense")


def _licence(origin: Origin | None) -> str:
    known = origin.licence if origin and origin.licence else None
    of = code(origin.repository or origin.name) if origin else "the dense model"
    terms = f"is {in_line(known)}" if known else "was not found out: look it up before you pass this on"
    return f"## Licence\n\nA compressed model stays under the licence of {of}, which {terms}."
