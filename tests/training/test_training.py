"""Distillation and block refinement: their losses against plain formulas, and what they do to a model."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from svdexp.allocation import Uniform
from svdexp.data import Beginning, Excerpt
from svdexp.data.reads import files_read_by
from svdexp.engine.compress import compress
from svdexp.engine.result import Compression
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.factors import factors_of
from svdexp.models.matrices import Matrix
from svdexp.models.path import Pass, block_passes
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.structure import Targets, find_matrices, named_blocks
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache, Shelf
from svdexp.schema import Bos, Traversal
from svdexp.storage import FactorStorage, GPTQStorage, PivotStorage, RemapStorage, RTNStorage, Storage
from svdexp.training import BlockRefine, Distill, Lesson, SequentialLora, Student, Training, sequential_lora, teach
from svdexp.training.block_refine import Paths, mean_error
from svdexp.update import IPCA, RefitOutput
from tests.conftest import VOCABULARY, tiny_model

DISTILL = Distill(steps=30, batch=3, seq_len=12, lr=3e-3, check_every=10)
REFINE = BlockRefine(steps=30, batch=3, lr=3e-3, check_every=10)
PLAIN = Method("svd_llm", InputMoment(), Uniform(), PivotStorage())


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """With matrices so large that blocks matter, as they do in a trained model."""
    for layer in find_matrices(model, Targets()):
        layer.weight(model).mul_(8)
    return model


def speech(model: PreTrainedModel) -> torch.Tensor:
    """(24, 24) tokens drawn from the model itself, so that there is something to learn from them."""
    torch.manual_seed(4)
    tokens = torch.randint(VOCABULARY, (24, 1))
    for _ in range(23):
        tokens = torch.cat([tokens, torch.multinomial((3 * model(tokens).logits[:, -1]).softmax(-1), 1)], dim=1)
    return tokens


def method_of(**trainings: Training) -> Method:
    return replace(PLAIN, training=trainings)


def student_of(model: PreTrainedModel, rank: int = 6) -> Student:
    """Every layer at a rank, by plain SVD."""
    dense: dict[Matrix, nn.Module] = {}
    for layer in find_matrices(model, Targets()):
        dense[layer] = module = layer.layer(model)
        U, sigma, Vh = torch.linalg.svd(layer.weight(model))
        low_rank = LowRankLinear(layer.n, rank, layer.m, bias=module.bias is not None)
        with torch.no_grad():
            low_rank.rank_out.weight.copy_(U[:, :rank] * sigma[:rank])
            low_rank.rank_in.weight.copy_(Vh[:rank])
            if module.bias is not None:
                low_rank.rank_out.bias.copy_(module.bias)
        layer.put(model, low_rank.requires_grad_(False))
    return Student(model, dense)


def test_the_teacher_is_the_dense_model_and_leaves_no_trace(model: PreTrainedModel, windows: torch.Tensor) -> None:
    dense = model(windows).logits
    student = student_of(model)
    student.remember(model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)  # as if trained, norms and embeddings included
    student.remember(model.parameters())  # for the next training, which is to bring it near the same model
    before = model(windows).logits
    with student.as_teacher() as teacher:
        assert torch.equal(teacher(windows).logits, dense)
    assert torch.equal(model(windows).logits, before)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.0}, {"labels": 0.3}, {"labels": 1.0}, {"hidden": 0.7}, {"labels": 1.0, "hidden": 0.7}],
)
def test_the_distillation_loss(llama: PreTrainedModel, windows: torch.Tensor, options: dict[str, Any]) -> None:
    teacher = copy.deepcopy(llama).double()
    student = student_of(llama)
    found = replace(DISTILL, **options).loss(student, windows[0])
    wanted = teacher(windows[:1], output_hidden_states=True)
    given = llama.double()(windows[:1], output_hidden_states=True)
    T, labels = options.get("temperature", 1.0), options.get("labels", 0.0)
    p, q = ((x.logits[0, :-1] / T).softmax(-1) for x in (wanted, given))
    expected = (1 - labels) * T**2 * (p * (p / q).log()).sum(-1).mean()
    logp = given.logits[0, :-1].log_softmax(-1)
    expected = expected - labels * logp[range(23), windows[0, 1:]].mean()
    states = zip(given.hidden_states, wanted.hidden_states, strict=True)
    errors = [((a - b) ** 2).sum() / (b**2).sum() for a, b in states]
    expected = expected + options.get("hidden", 0.0) * sum(errors[1:]) / 3
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_factors_are_learnt_and_biases_are_not() -> None:
    student = student_of(tiny_model("opt"))
    learnt = {id(parameter) for parameter in student.learnt()}
    named = {key: p for name, layer in student.layers.items() for key, p in layer.named_parameters(prefix=name)}
    assert {key for key, parameter in named.items() if id(parameter) in learnt} == {
        f"{name}.{side}.weight" for name in student.layers for side in ("rank_out", "rank_in")
    }
    assert any(key.endswith("bias") for key in named)


def test_checkpointing_changes_no_gradient(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    student = student_of(llama)
    gradients = []
    for checkpointing in (False, True):
        for factor in student.learnt():
            factor.requires_grad_(True).grad = None
        replace(DISTILL, checkpointing=checkpointing).loss(student, windows[0]).backward()
        gradients.append([factor.grad.clone() for factor in student.learnt()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def divergence(model: PreTrainedModel, dense: torch.Tensor, windows: torch.Tensor) -> float:
    p, q = dense.log_softmax(-1), model(windows).logits.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("storage", [FactorStorage(), PivotStorage()])
def test_training_brings_any_model_nearer_to_the_dense_one(model: PreTrainedModel, storage: Storage) -> None:
    windows = speech(loud(model))
    dense = model(windows).logits
    plain = copy.deepcopy(model)
    before = compress(plain, windows, replace(PLAIN, storage=storage), 0.6)
    gentle = replace(DISTILL, lr=1e-3)  # refined blocks are so near that larger steps lead away
    trained = replace(method_of(block_refine=REFINE, distill=gentle), storage=storage)
    after = compress(model, windows, trained, 0.6)
    assert after.ranks == before.ranks
    assert after.layer_bits == before.layer_bits
    tokens = {name: part.tokens for name, part in after.training.items()}
    assert tokens == {"block_refine": 3 * 30 * 3 * 24, "distill": 30 * 3 * 12}, "of three blocks, each for 30 steps"
    assert divergence(model, dense, windows) < 0.9 * divergence(plain, dense, windows)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_refinement_lowers_the_error_of_the_first_block(llama: PreTrainedModel) -> None:
    windows = speech(loud(llama))

    def output(model: PreTrainedModel) -> torch.Tensor:
        return model(windows, output_hidden_states=True).hidden_states[1]

    target = output(llama)
    plain = copy.deepcopy(llama)
    compress(plain, windows, PLAIN, 0.5)
    compress(llama, windows, method_of(block_refine=REFINE), 0.5)
    assert (output(llama) - target).square().mean() < 0.7 * (output(plain) - target).square().mean()


def test_refinement_leaves_the_teachers_biases(windows: torch.Tensor) -> None:
    """In float32 a layer of factors has the very bias of the dense one."""
    model = tiny_model("gpt2")
    layers = {layer.name: layer.layer(model) for layer in find_matrices(model, Targets())}
    before = {name: layer.bias.clone() for name, layer in layers.items()}
    done = compress(model, windows, method_of(block_refine=REFINE), 0.5)
    assert all(torch.equal(layers[name].bias, bias) for name, bias in before.items())
    assert any(not torch.equal(layer.bias(model), before[layer.name]) for layer in done.layers), "biases are refined"


def test_refinement_leaves_the_teacher_dense(llama: PreTrainedModel) -> None:
    """Norms are refined, which both models have, and the next training's teacher has them as they were."""
    windows = speech(loud(llama))
    dense, before = llama(windows).logits, llama.model.layers[1].input_layernorm.weight.clone()
    student = student_of(llama)
    REFINE(Lesson(student, windows, lambda **about: Shelf(), 0))
    assert not torch.equal(llama.model.layers[1].input_layernorm.weight, before)
    with student.as_teacher() as teacher:
        assert torch.equal(teacher(windows).logits, dense)


def test_refinement_takes_windows_in_the_order_of_the_seed(windows: torch.Tensor) -> None:
    found = []
    for seed in (0, 0, 1):
        student = student_of(tiny_model("llama_gqa"))
        replace(REFINE, steps=1, batch=1)(Lesson(student, windows, lambda **about: Shelf(), seed))
        found.append(factors_of(next(iter(student.layers.values()))).A)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_paths_are_those_of_the_two_models(model: PreTrainedModel, windows: torch.Tensor) -> None:
    """Brute force: whole passes of the dense and of the compressed model, whose blocks have moved meanwhile."""
    dense = hidden_states_of(model, windows)
    student = student_of(model)
    student.remember(model.parameters())
    paths = Paths(student, windows)
    for index, (name, block) in enumerate(named_blocks(model).items()):
        paths.aim()
        for parameter in block.parameters():
            parameter.data.mul_(1.1)  # as if it had been refined
        compressed = hidden_states_of(model, windows)
        error = (compressed[index + 1][2] - dense[index + 1][2]).square().mean()
        torch.testing.assert_close(paths.error(name, 2), error, rtol=1e-4, atol=0)
        torch.testing.assert_close(mean_error(paths, name, torch.tensor([2])), float(error), rtol=1e-4, atol=0)
        paths.advance()
        torch.testing.assert_close(torch.cat(paths.dense.states), dense[index + 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat(paths.compressed.states), compressed[index + 1], rtol=1e-4, atol=1e-5)


def hidden_states_of(model: PreTrainedModel, windows: torch.Tensor) -> list[torch.Tensor]:
    """What enters the first block, and what every block gives, (N, L, d)."""
    passes: list[Pass] = []
    with block_passes(model, passes.append):
        model(windows, use_cache=False)
    return [passes[0].state, *(one.output for one in passes)]


def test_the_compressed_path_keeps_the_models_format(windows: torch.Tensor) -> None:
    """Where autocast leaves float32, as it does on a GPU of a norm at the end of a block."""
    model = tiny_model("llama_gqa").to(torch.bfloat16)

    def norm(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.float() if torch.is_autocast_enabled("cpu") else output

    next(iter(named_blocks(model).values())).register_forward_hook(norm)
    paths = Paths(Student(model, {}), windows)
    paths.aim()
    paths.advance()
    assert {state.dtype for state in paths.compressed.states} == {torch.bfloat16}


def test_what_is_not_in_a_block_stays(llama: PreTrainedModel) -> None:
    windows = speech(loud(llama))
    outside = {name: p.clone() for name, p in llama.named_parameters() if ".layers." not in name}
    norm = llama.model.layers[0].input_layernorm.weight.clone()
    compress(llama, windows, method_of(block_refine=REFINE, distill=DISTILL), 0.5)
    assert all(torch.equal(llama.get_parameter(name), value) for name, value in outside.items())
    assert not torch.equal(llama.model.layers[0].input_layernorm.weight, norm), "all parameters of a block are refined"


@pytest.mark.parametrize(
    "parts",
    [
        {"storage": PivotStorage()},
        {"storage": RemapStorage()},
        {"storage": GPTQStorage(8, None)},
        {"update": RefitOutput()},
        {"update": IPCA(), "weighting": None},
        {"traversal": Traversal.blockwise},
    ],
    ids=["pivot", "remap", "gptq", "refit", "ipca", "blockwise"],
)
def test_half_precision_models_train_in_float32(windows: torch.Tensor, parts: dict[str, Any]) -> None:
    model = tiny_model("llama_gqa").to(torch.bfloat16)
    trained = replace(method_of(block_refine=REFINE, distill=DISTILL), **parts)
    done = compress(model, windows, trained, 0.4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    losses = [entry[1] for entry in done.training["distill"].curve[1:]]
    assert losses[-1] < losses[0]


def test_without_factors_there_is_nothing_to_train(windows: torch.Tensor) -> None:
    """A ratio at which codes hold whole matrices."""
    method = replace(method_of(distill=DISTILL), storage=RTNStorage(4, 16))
    done = compress(tiny_model("llama_gqa"), windows, method, 0.9)
    assert set(done.ranks.values()) == {None}
    assert done.training == {}


def interrupted(path: Path, windows: torch.Tensor, method: Method, looks: int) -> None:
    """A run that is killed after some looks at held-out text."""
    import svdexp.descent.descent as module

    plain = module.Shelf.put
    left = [looks]

    def put_and_die(shelf: Any, item: str, tensors: Any) -> None:
        plain(shelf, item, tensors)
        if item == "state":
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    module.Shelf.put = put_and_die  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            compress(tiny_model("llama_gqa"), windows, method, 0.5, cache=Cache(path))
    finally:
        module.Shelf.put = plain  # type: ignore[method-assign]


def test_an_interrupted_run_ends_as_an_undisturbed_one(windows: torch.Tensor, tmp_path: Path) -> None:
    method = method_of(block_refine=REFINE, distill=DISTILL)

    def result(path: Path) -> tuple[Compression, torch.Tensor]:
        model = tiny_model("llama_gqa")
        return compress(model, windows, method, 0.5, cache=Cache(path)), model(windows).logits

    expected, logits = result(tmp_path / "whole")
    for looks in (2, 6, 11):
        interrupted(tmp_path / f"killed at {looks}", windows, method, looks)
        found, again = result(tmp_path / f"killed at {looks}")
        assert torch.equal(again, logits), looks
        assert str(found.training) == str(expected.training), looks


def test_trained_components_serve_one_ratio(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"save=elastic .* method\.training"):
        compress(llama, windows, replace(method_of(distill=DISTILL), storage=FactorStorage()), 0.5, elastic=True)


def test_items_longer_than_the_windows_are_refused(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"training\.distill\.seq_len=99 is longer than calibration\.seq_len=24"):
        compress(llama, windows, method_of(distill=replace(DISTILL, seq_len=99)), 0.5)


LORA = SequentialLora(text=None, epochs=4, batch=4, seq_len=12, lr=1e-2, r=2, alpha=4, check_every=4)


@pytest.mark.parametrize("sequential", [True, False])
def test_adapters_are_trained_merged_and_gone(model: PreTrainedModel, sequential: bool) -> None:
    windows = speech(loud(model))[:5]
    windows = torch.cat([windows, windows[:1]])
    plain = copy.deepcopy(model)
    before = compress(plain, windows, PLAIN, 0.5)
    method = method_of(sequential_lora=replace(LORA, sequential=sequential))
    after = compress(model, windows, method, 0.5)
    assert after.layer_bits == before.layer_bits
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    curve = after.training["sequential_lora"].curve
    assert min(entry[2] for entry in curve) < curve[0][2], "held-out perplexity falls"


def test_a_round_of_adapters_moves_one_factor_by_a_low_rank(llama: PreTrainedModel) -> None:
    windows = speech(loud(llama))
    student = student_of(llama)
    before = {name: copy.deepcopy(factors_of(layer)) for name, layer in student.layers.items()}
    LORA.train(["rank_out"], Lesson(student, windows, lambda **about: Shelf(), seed=0))
    for name, layer in student.layers.items():
        change = factors_of(layer).A - before[name].A
        assert torch.equal(factors_of(layer).B, before[name].B)
        assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 2


def short_student() -> Student:
    """Of one block."""
    model: Any = tiny_model("llama_gqa")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return student_of(model)


def test_what_a_training_left_is_found_again_after_the_same_trainings_alone(windows: torch.Tensor) -> None:
    distill, refine = replace(DISTILL, steps=1, batch=1), replace(REFINE, steps=1, batch=1)

    def last_shelf(texts: dict[str, torch.Tensor], **trainings: Training) -> dict[str, Any]:
        asked: list[dict[str, Any]] = []

        def shelf(**about: Any) -> Shelf:
            asked.append(about)
            return Shelf()

        teach(short_student(), trainings, windows[:2], texts, shelf, seed=0)
        return asked[-1]

    alone = last_shelf({}, distill=distill)
    assert alone == last_shelf({}, distill=distill)
    assert alone != last_shelf({}, refine=refine, distill=distill)
    assert alone != last_shelf({"distill": windows[2:4]}, distill=distill)
    before = last_shelf({"refine": windows[2:4]}, refine=refine, distill=distill)
    assert before == last_shelf({"refine": windows[2:4]}, refine=refine, distill=distill)
    assert before != last_shelf({"refine": windows[3:5]}, refine=refine, distill=distill)


def test_what_is_stored_learns_anew_where_the_text_before_it_is_another(tmp_path: Path) -> None:
    """Plain factors learn a text of their own, and then what is stored of them the calibration windows."""
    windows = speech(loud(tiny_model("llama_gqa")))
    short = replace(DISTILL, steps=4, lr=1e-3)
    method = method_of(factors=short, kept=replace(short, stored=True))
    said = []
    for folder, text in ((tmp_path, windows), (tmp_path, windows.flip(0)), (tmp_path / "other", windows.flip(0))):
        model = loud(tiny_model("llama_gqa"))
        compress(model, windows, method, 0.5, texts={"factors": text}, cache=Cache(folder))
        said.append(model(windows).logits)
    assert not torch.equal(said[0], said[1])
    assert torch.equal(said[1], said[2])


@pytest.mark.parametrize("options", [{"files": ["a.txt"]}, {"chat": True}, {"samples": 4}])
def test_options_of_a_text_say_of_which(options: dict[str, Any]) -> None:
    (key,) = options
    with pytest.raises(UserError, match=rf"^method\.training\.distill\.{key} has no effect without .*\.text$"):
        replace(DISTILL, **options)
    files = {"files": ["a.txt"], **options}
    assert replace(DISTILL, text="files", **files).excerpt() == Excerpt(
        "files", **{"chat": False, "samples": None, **files}, seq_len=12, knob=DISTILL.knob
    )
    assert DISTILL.excerpt() is None


@pytest.mark.parametrize("training", [DISTILL, SequentialLora(text=None)], ids=lambda part: type(part).__name__)
def test_texts_that_no_training_has(training: Distill | SequentialLora) -> None:
    for name in ("foo", "mixture", "hub", "images"):
        with pytest.raises(
            UserError, match=rf"^method\.training\.\w+\.text: '{name}' cannot be; choose from pydoc, .*, files$"
        ):
            replace(training, text=name).excerpt()
    for how in ({"text": "c4", "files": ["a.txt"]}, {"text": "files"}):
        with pytest.raises(UserError, match=r"\.files and method\.training\.\w+\.text=files go together$"):
            replace(training, **how).excerpt()


def test_mistakes_in_a_text_of_its_own_name_its_keys(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Not those of calibration, which may have a text without any."""
    bos, gone, notes = Beginning(Bos.none, None), tmp_path / "gone.txt", tmp_path / "notes.txt"
    notes.write_text("the rank")
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "the", "output": "rank"}]')
    empty = tmp_path / "empty.txt"
    empty.touch()

    def excerpt_of(path: Path, **options: Any) -> Excerpt:
        training = replace(DISTILL, text="files", files=[str(path)], **options)
        return method_of(mine=training).excerpts["mine"]

    knob = r"^method\.training\.mine"
    with pytest.raises(UserError, match=rf"{knob}\.files: .* is not a file"):
        excerpt_of(gone).check()
    with pytest.raises(UserError, match=rf"{knob}\.files: .*gone.txt is not a file"):
        excerpt_of(gone).read_from()
    with pytest.raises(UserError, match=rf"{knob}\.chat=true: .*notes.txt is no instruction data"):
        excerpt_of(notes, chat=True).check()
    with pytest.raises(UserError, match=rf"{knob}\.chat=true, but .* has no chat template"):
        excerpt_of(rows, chat=True).windows(tokenizer, bos)
    with pytest.raises(UserError, match=rf"{knob}: the text files is empty"):
        excerpt_of(empty).windows(tokenizer, bos)
    with pytest.raises(UserError, match=rf"{knob}: .* 2 tokens, .* {knob[1:]}\.samples=9 × {knob[1:]}\.seq_len=2"):
        excerpt_of(notes, samples=9, seq_len=2).windows(tokenizer, bos)
    with pytest.raises(UserError, match=r"^method\.training\.distill\.files: .*gone.txt is not a file"):
        files_read_by(replace(DISTILL, text="files", files=[str(gone)]))  # as identities do


def test_tokens_are_counted_of_the_text_that_is_learnt(windows: torch.Tensor) -> None:
    refine = replace(REFINE, steps=2, batch=3)
    found = teach(short_student(), {"refine": refine}, windows, {"refine": windows[:2, :7]}, lambda **about: Shelf(), 0)
    assert found["refine"].tokens == 2 * 3 * 7


def test_distillation_moves_every_factor(windows: torch.Tensor) -> None:
    student = short_student()
    before = [parameter.clone() for parameter in student.learnt()]
    replace(DISTILL, steps=1, batch=1)(Lesson(student, windows[:2], lambda **about: Shelf(), seed=0))
    moved = [not torch.equal(parameter, value) for parameter, value in zip(student.learnt(), before, strict=True)]
    assert all(moved)


def test_adapters_are_as_asked_for_and_drop_out_only_while_they_learn(
    windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W + (alpha / r) D E, with dropout before E."""
    student, seen = short_student(), {"learns": list[Any](), "is judged": list[Any]()}

    def watch(name: str, when: str) -> None:
        plain = getattr(sequential_lora, name)

        def watched(*args: Any) -> Any:
            layers: list[Any] = [module for module in student.model.modules() if hasattr(module, "lora_dropout")]
            drops = [layer.lora_dropout["default"] for layer in layers]
            scales = {layer.scaling["default"] for layer in layers}
            seen[when].append((len(layers), scales, {(drop.p, drop.training) for drop in drops}))
            return plain(*args)

        monkeypatch.setattr(sequential_lora, name, watched)

    watch("cross_entropy", "learns")
    watch("perplexity_of", "is judged")
    training = replace(LORA, steps=2, r=2, alpha=6, dropout=0.25)
    training.train(["rank_in"], Lesson(student, windows, lambda **about: Shelf(), seed=0))
    count = len(student.layers)
    for when, learning in (("learns", True), ("is judged", False)):
        found = seen[when][1:]  # adapters that are still zero may drop what they like
        assert found
        assert all(one == (count, {3.0}, {(0.25, learning)}) for one in found), when


def test_adapters_learn_the_texts_own_next_tokens(windows: torch.Tensor) -> None:
    student = short_student()
    theirs = student.model(windows[:1], labels=windows[:1]).loss
    torch.testing.assert_close(sequential_lora.cross_entropy(student, windows[0]), theirs)


def test_rounds_of_adapters_are_kept_apart(windows: torch.Tensor, tmp_path: Path) -> None:
    """First the factors on the outputs' side, as in the paper; both are found again on the shelf."""
    found, parts, cache = [], list[str](), Cache(tmp_path)

    def shelf(**about: Any) -> Shelf:
        parts.append(about["part"])
        return cache.shelf("training", **about)

    for where in (lambda **about: Shelf(), shelf, shelf):
        student = short_student()
        replace(LORA, steps=1, batch=1)(Lesson(student, windows, where, seed=0))
        found.append([factors_of(layer) for layer in student.layers.values()])
    assert parts == 2 * ["rank_out", "rank_in"]
    for one, again, resumed in zip(*found, strict=True):
        assert torch.equal(one.A, again.A)
        assert torch.equal(one.B, again.B)
        torch.testing.assert_close(resumed.A @ resumed.B, one.A @ one.B)


def test_adapters_start_where_the_seed_says(windows: torch.Tensor) -> None:
    """Whatever was drawn before."""
    found = []
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        student = short_student()
        torch.manual_seed(state)
        training = replace(LORA, steps=1, batch=1, weight_decay=0.0, dropout=0.0)
        training.train(["rank_out"], Lesson(student, windows, lambda **about: Shelf(), seed))
        found.append(factors_of(next(iter(student.layers.values()))).A)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_training_may_have_a_text_of_its_own(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """With the calibration windows as that text, the result is the same as without it; with others it is not."""
    method = method_of(distill=DISTILL)
    results = []
    for texts in ({}, {"distill": windows}, {"distill": windows.flip(0)}):
        model = tiny_model("llama_gqa")
        compress(model, windows, method, 0.5, texts=texts)
        results.append(model(windows).logits)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_what_two_blocks_share_is_not_refined(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """Else the second block's refinement would undo the first one's."""
    llama = loud(llama)
    llama.model.layers[2].mlp = llama.model.layers[0].mlp
    shared = {key: value.clone() for key, value in llama.model.layers[0].mlp.state_dict().items()}
    own = llama.model.layers[0].input_layernorm.weight.clone()
    compress(llama, windows, method_of(block_refine=REFINE), 0.5)
    assert all(torch.equal(llama.model.layers[0].mlp.state_dict()[key], value) for key, value in shared.items())
    assert not torch.equal(llama.model.layers[0].input_layernorm.weight, own)
