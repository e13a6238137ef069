"""What is run, and where: another engine is another entry of ENGINES and its folder in launch/engines/."""

from typing import NamedTuple

DENSE = "dense"
PERPLEXITIES, SPEEDS = "perplexity", ("prefill", "decode")


class Form(NamedTuple):
    """A model that an engine is given: words of `python -m svdexp`, then of `python -m svdexp.export`.

    What is run is the export where there are words of it, else the run's checkpoint; or nothing is compressed, and
    `file` is there already. In these `{dense}` is the dense model's folder.
    """

    compress: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    file: str | None = None


class Engine(NamedTuple):
    """The forms that an engine is given beside the dense model, and how its environment is made.

    `install` are the words of one `pip` after the other, run in the engine's folder of launch/engines/; without any the
    engine runs in svdexp's own environment.
    """

    forms: tuple[str, ...]
    install: tuple[tuple[str, ...], ...] = ()


GGUF = ("format=gguf", "gguf={dense}.gguf")  # which llama.cpp's script makes with all of {dense}.*.gguf, at first
CORRECTED = ("storage=residual", "storage.group_size=32", "ratio=0.34", "method.allocation.rank_align=32")
PACKED = ("format=compressed_tensors",)
# Of one size and without zero points, which transformers does not load (docs/export.md); all columns are multiples.
WIDTHS = "storage.forms=[gptq3-g64-fit,gptq4-g64-fit,gptq5-g64,gptq6-g64,gptq8-g64]"
FORMS = {
    # The controls: what llama.cpp's own types and arithmetic do, of the dense model by its own converter and quantiser.
    "dense-q4_0": Form(file="{dense}.q4_0.gguf"),
    "dense-q8_0": Form(file="{dense}.q8_0.gguf"),
    "factors": Form(("storage=factors",)),
    "pivot": Form(("storage=pivot",)),
    "gptq4": Form(("storage=gptq4", "method.allocation.rank_align=32")),
    "factors-for-vllm": Form(("storage=factors",), ("format=vllm",)),
    "pivot-as-factors": Form(("storage=pivot",), ("format=vllm",)),
    "codes-gguf": Form(("method=quantise", "storage=gptq4"), GGUF),
    "mixed-gguf": Form(("method=mixed", "ratio=0.28"), GGUF),
    "corrected-gguf": Form(CORRECTED, GGUF),
    "codes-packed": Form(("method=quantise", "storage=gptq4"), PACKED),
    "mixed-packed": Form(("method=mixed", WIDTHS, "ratio=0.28"), PACKED),
    "corrected-gptq": Form(CORRECTED, ("format=gptq",)),
    "corrected-peft": Form(CORRECTED, ("format=peft",)),
}
ENGINES = {
    "transformers": Engine(("factors", "pivot", "gptq4")),
    "compressed_tensors": Engine(("codes-packed", "mixed-packed"), (("install", "-r", "requirements.txt"),)),
    # Of the three packages the wheels that indices have beside this torch do not import, and text needs none of them.
    "vllm": Engine(
        ("factors-for-vllm", "pivot-as-factors"),
        (
            ("install", "-r", "torch.txt"),
            ("install", "-r", "requirements.txt"),
            ("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"),
        ),
    ),
    "llama_cpp": Engine(
        ("dense-q4_0", "dense-q8_0", "codes-gguf", "mixed-gguf", "corrected-gguf"),
        (("install", "-r", "requirements.txt"),),
    ),
    # torchvision, as above, does not import beside this torch.
    "openvino": Engine(("factors",), (("install", "-r", "requirements.txt"), ("uninstall", "--yes", "torchvision"))),
    "peft_gptq": Engine(
        ("corrected-peft", "corrected-gptq"),
        (
            ("install", "--upgrade", "pip", "setuptools", "wheel", "packaging", "ninja"),
            ("install", "-r", "requirements.txt"),
            ("install", "--no-deps", "-r", "loose.txt"),
            ("install", "--no-deps", "--no-build-isolation", "gptqmodel==7.7.0"),
        ),
    ),
}
