"""What a stranger does with checkpoints, in a process where svdexp cannot be imported; run by test_portable.py.

`python elsewhere.py FOLDER…` prints one line of JSON a folder. Beside its checkpoint each holds expected.safetensors:
`tokens`, and for them `logits` and what `generate` gives.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

sys.modules["svdexp"] = None  # type: ignore[assignment]  # importing it raises ImportError

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def load(folder: Path, auto: Any = AutoModelForCausalLM) -> Any:
    return auto.from_pretrained(folder, trust_remote_code=True).eval()


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def visit(folder: Path) -> dict[str, Any]:
    expected = load_file(folder / "expected.safetensors")
    tokens, model = expected["tokens"], load(folder)
    found = {"class": type(model).__name__, "logits": torch.equal(logits(model, tokens), expected["logits"])}
    generated = model.generate(tokens[:1], max_new_tokens=20, do_sample=False, eos_token_id=None)
    found["generated"] = torch.equal(generated, expected["generated"])
    found["pickled"] = torch.equal(logits(pickle.loads(pickle.dumps(model)), tokens), expected["logits"])
    body = load(folder, AutoModel)
    with torch.no_grad():
        inner, outer = body(tokens)[0], model.base_model(tokens)[0]
    found["body"] = torch.equal(inner, outer)
    found["words"] = AutoTokenizer.from_pretrained(folder)("the rank of a matrix")["input_ids"]
    model.train()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.eval()
    found["learns"] = float(model(tokens, labels=tokens).loss) < float(loss)
    again = folder / "again"
    model.save_pretrained(again)
    found["saved"] = torch.equal(logits(load(again), tokens), logits(model, tokens))
    found["auto_map"] = json.loads((again / "config.json").read_text())["auto_map"]
    return found


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(json.dumps({"folder": path} | visit(Path(path))))
