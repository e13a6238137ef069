"""Every YAML in conf/ composes, validates and binds to its target; mistakes name their knob."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from svdexp.allocation import EffectiveRank, Uniform
from svdexp.calibration import Statistics
from svdexp.cells.guard import config_dir
from svdexp.factorisation import Identity, Metric
from svdexp.method import Method, build_method
from svdexp.runtime.errors import UserError
from svdexp.schema import Config, EvalConfig, EvaluateConfig, validate, validate_evaluation
from svdexp.storage import FactorStorage

CONF = Path(config_dir())
# How many choices there are at least.
GROUPS = {
    "calibration": 9,
    "eval": 7,
    "experiment": 12,
    "hydra/hydra_logging": 1,
    "hydra/job_logging": 2,
    "hydra/launcher": 3,
    "hydra/sweeper": 1,
    "method": 14,
    "method/allocation": 12,
    "method/training": 4,
    "method/update": 2,
    "method/weighting": 6,
    "model": 35,
    "storage": 9,
    "tracker": 4,
}
ELASTIC = "save=elastic storage=factors"
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
# What a choice needs from the user before it is complete.
REQUIRED = {
    ("calibration", "hub"): ["calibration.dataset=OWNER/NAME"],
    ("calibration", "images"): ["calibration.dataset=OWNER/NAME"],
    ("method/allocation", "whole"): ["method.weighting=null"],
    ("calibration", "files"): ["calibration.files=[some.txt]"],
    ("method/allocation", "from_file"): ["method.allocation.path=ranks.json"],
    ("method/allocation", "from_gamma"): ["method.allocation.path=best_gamma.json"],
    ("method/allocation", "forms"): ["storage=forms"],
    ("method/allocation", "forms_from_file"): ["storage=forms", "method.allocation.path=forms.json"],
    ("storage", "forms"): ["method/allocation=forms"],
}


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def test_an_experiments_windows_of_one_text_can_be_changed_or_removed() -> None:
    def part(*words: str) -> EvalConfig:
        return validate(compose("config", ["experiment=smollm2_wikitext", *words])).eval

    assert part().windows_of("wikitext2_local") == (12, "eval.windows")
    assert part().windows_of("ptb_local") == (6, "eval.windows_by_text.ptb_local")
    assert part("eval.windows_by_text.ptb_local=null").windows_of("ptb_local")[0] is None
    assert part("~eval.windows_by_text.ptb_local").windows_of("ptb_local") == (12, "eval.windows")


def test_separators_may_spell_out_line_breaks() -> None:
    def part(*words: str) -> EvalConfig:
        return validate(compose("config", ["eval=ppl", *words])).eval

    assert part().separator == "\n\n"
    assert part(r'eval.separator="\n"').separator == part(r"eval.separator=\n").separator == "\n"
    assert part("eval.separator=' '", r"+eval.separator_by_text.ptb=\t").separator_by_text == {"ptb": "\t"}


def test_a_presets_texts_can_be_fewer() -> None:
    for preset in ("svd_llm", "asvd", "dobi"):
        assert validate(compose("config", [f"eval={preset}", "eval.texts=[ptb]"])).eval.texts == ["ptb"]


def test_no_yaml_is_lost_and_every_one_is_tried() -> None:
    """A new choice needs no new number, but a folder of its own would not be tried."""
    counts = {group: len(list((CONF / group).glob("*.yaml"))) for group in GROUPS}
    assert {group: counts[group] for group in GROUPS if counts[group] < GROUPS[group]} == {}
    assert len(list(CONF.rglob("*.yaml"))) == len(CHOICES) + 3  # config.yaml, evaluate.yaml, export.yaml


def test_no_yaml_decides_between_one_run_and_many() -> None:
    """That is the command line's business; tests/end_to_end/forked.py relies on it."""
    contents = [OmegaConf.load(path) for path in CONF.rglob("*.yaml")]
    assert len(contents) > len(CHOICES)
    assert [content for content in contents if OmegaConf.select(content, "hydra.mode") is not None] == []


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_yaml_composes_and_binds(group: str, choice: str) -> None:
    overrides = [f"{group}={choice}", *REQUIRED.get((group, choice), [])]
    config = validate(compose("config", overrides))
    method = build_method(config)
    assert method.name == config.method.name
    if group in ("model", "method", "eval"):
        assert getattr(config, group).name == choice
    if group == "calibration":
        assert config.calibration.text == choice.removesuffix("_chat")
        assert config.calibration.chat == choice.endswith("_chat")


@pytest.mark.parametrize("method", [choice for group, choice in CHOICES if group == "method"])
def test_parts_named_beside_a_method_are_the_methods_and_as_their_files_say(method: str) -> None:
    parts = ["method/weighting=identity", "method/allocation=effective_rank", "storage=factors"]
    found = build_method(validate(compose("config", [f"method={method}", *parts])))
    assert (found.weighting, found.allocation, found.storage) == (Identity(), EffectiveRank(), FactorStorage())


def test_the_default_is_the_documented_main_job() -> None:
    default = compose("config")
    spelt = ["model=smollm2-135m", "method=kron", "storage=pivot", "ratio=0.8", "calibration=pydoc", "eval=quick"]
    assert default == compose("config", spelt)


def test_an_evaluation_composes() -> None:
    ConfigStore.instance().store(name="schema", node=EvaluateConfig)
    try:
        config = validate_evaluation(compose("evaluate", ["path=org/model", "eval=full"]))
        with pytest.raises(UserError, match="path"):
            validate_evaluation(compose("evaluate"))
    finally:
        ConfigStore.instance().store(name="schema", node=Config)
    assert (config.model.name, config.model.path, config.eval.limit) == ("model", "org/model", None)
    assert config.eval.tasks == ["commonsense"]
    assert len(config.eval.prompts) == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "eval.split=validation",
            r"^eval\.split=validation has no effect without eval\.dataset; eval\.split_by_text\.",
        ),
        ("calibration.column=body", r"^calibration\.column=body has no effect without calibration\.dataset$"),
        ("ratio=0", "ratio is the kept fraction"),
        ("ratio=1.5", "ratio is the kept fraction"),
        ("ratio=nan", "ratio is the kept fraction"),
        ("seed=-1", r"seed must be from 0 to 4294967295, not -1"),
        ("seed=4294967296", r"seed must be from 0 to"),
        ("calibration.samples=99999999999999999999", r"calibration\.samples=9+ does not fit into 64 bits"),
        ("+targets.ranks={a:99999999999999999999}", r"targets\.ranks\.a=9+ does not fit into 64 bits"),
        ("calibration.samples=0", r"calibration\.samples must be at least 1"),
        ("calibration.seq_len=1", r"calibration\.seq_len must be at least 2"),
        ("calibration=files", r"calibration\.files"),
        ("eval.texts=[files]", r"eval\.files"),
        ("eval.windows=0", r"eval\.windows must be at least 1"),
        ("+eval.windows_by_text.pydoc=0", r"eval\.windows_by_text\.pydoc must be at least 1"),
        ("+eval.windows_by_text.ptb=3", r"eval\.windows_by_text names ptb, not in eval\.texts"),
        ("experiment=one_shot eval.texts=[wikitext2_local]", r"names ptb_local.*; ~eval\.windows_by_text\.ptb_local"),
        ("eval.stride=0", r"eval\.stride must be at least 1"),
        ("eval.stride=1025", r"eval\.stride=1025 would leave out tokens between windows of 1024"),
        ("eval.bos=every eval.stride=1024", r"eval\.stride=1024 would leave out tokens between windows of 1023"),
        ("eval.batch_size=0", r"eval\.batch_size must be at least 1"),
        ("+eval.rows_by_text.c4=0", r"eval\.rows_by_text\.c4 must be at least 1"),
        ("+eval.cut_by_text.pydoc=pieces eval.windows=null", r"pydoc draws windows: say how many in eval\.windows"),
        ("+eval.cut_by_text.pydoc=rows eval.stride=9", r"pydoc draws windows: eval\.stride must be null"),
        ("eval.limit=0", r"eval\.limit must be at least 1"),
        ("eval.num_fewshot=-1", r"eval\.num_fewshot must be at least 0"),
        ("eval.prompts=['']", r"eval\.prompts has an empty prompt"),
        ("eval.efficiency.generate=0", r"eval\.efficiency\.generate"),
        ("targets.include=[]", r"targets\.include"),
        ("+targets.rank={a:3}", r"there is no key targets\.rank; did you mean targets\.ranks\?$"),
        (
            "+eval.efficiency.prompts=3",
            r"there is no key eval\.efficiency\.prompts; did you mean eval\.efficiency\.prompt",
        ),
        ("+method.weighting.alpha=1", r"method\.weighting.*alpha"),
        ("method.weighting._target_=svdexp.factorisation.Nothing", r"method\.weighting\._target_"),
        ("method.allocation._target_=os.system", r"method\.allocation\._target_=os\.system"),
        ("storage._target_=svdexp.allocation.Whole", r"storage\._target_=.*\.Whole is no storage: it has no bits"),
        ("method.weighting._target_=svdexp.allocation.Whole", r"method\.weighting\._target_=.*no weighting: .* needs"),
        ("method.allocation._target_=svdexp.update.IPCA", r"method\.allocation\._target_=.* no allocation: .*spectra"),
        (
            "method=dobi method.update._target_=svdexp.training.Distill",
            r"method\.update\..* no update: .*start",
        ),
        ("method/training=distill method.training.distill._target_=svdexp.update.IPCA", r"distill.* is no training"),
        ("method=dobi method.traversal=blockwise", r"method\.traversal=blockwise has no effect.*weighting is null"),
        ("method=dobi method.numerics=cholesky", r"method\.numerics=cholesky has no effect.*weighting is null"),
        ("method=dobi method.sigma_fuse=UV", r"method\.sigma_fuse=UV has no effect.*weighting is null"),
        ("method=svd method.traversal=blockwise", r"method\.traversal=blockwise has no effect.*=Identity needs no"),
        ("method=svd_llm method/update=ipca", r"method\.weighting has no effect.*=IPCA makes its own .*=Uniform"),
        (
            "method/allocation=whole storage=rtn_int4",
            r"method\.weighting has no effect.*=Whole .* method=quantise",
        ),
        ("method=quantise method/update=refit_output", r"method\.update has no effect.*=Whole"),
        ("method=quantise method/training=distill", r"method\.training has no effect.*=Whole"),
        ("method/allocation=from_file", r"method\.allocation.*path"),
        ("save=elastic", r"save=elastic .* use storage=factors, not PivotStorage"),
        ("save=elastic storage=rtn_int4", r"save=elastic .* use storage=factors, not RTNStorage"),
        ("save=elastic storage=factors +targets.ranks={q_proj:3}", r"save=elastic .* leave targets\.ranks out"),
        (f"{ELASTIC} method=asvd", r"save=elastic .* method\.allocation=Sensitivity cannot"),
        (f"{ELASTIC} method=swift_svd", r"save=elastic .* method\.allocation=Dynamic cannot"),
        (
            f"{ELASTIC} method/allocation=from_file method.allocation.path=ranks.json",
            r"save=elastic .* method\.allocation=FromFile cannot; use one of .*GlobalLoss.*Uniform",
        ),
        (f"{ELASTIC} method=svd_llm_update", r"save=elastic .* method\.update=null or save=checkpoint"),
        (f"{ELASTIC} method=svd_llm method.traversal=blockwise", r"save=elastic .* method\.traversal=blockwise"),
        (f"{ELASTIC} method=dobi", r"save=elastic keeps weighted components, but method\.weighting is null"),
        (f"{ELASTIC} method=svd method/training=distill", r"save=elastic .* method\.training fits them to one"),
        ("storage=rtn_int4 storage.code_bits=7", r"storage\.code_bits must be one of \[2, 3, 4, 5, 6, 8\], not 7"),
        ("storage=rtn_int4 storage.group_size=0", r"storage\.group_size must be at least 1"),
        ("storage=gptq4 storage.samples=0", r"storage\.samples must be at least 1"),
        ("storage=gptq4 storage.solver=other", r"storage\.solver"),
        ("method.allocation.rank_align=0", r"method\.allocation\.rank_align must be at least 1"),
        ("method/allocation=effective_rank method.allocation.move=1", r"method\.allocation\.move must be"),
        ("method/allocation=dynamic method.allocation.delta=2", r"method\.allocation\.delta must be"),
        ("method/allocation=dynamic method.allocation.alpha=-1", r"method\.allocation\.alpha must be"),
        ("method/allocation=dynamic method.allocation.windows=0", r"method\.allocation\.windows must be"),
        ("method/allocation=sensitivity method.allocation.metric=other", r"method\.allocation\.metric"),
        ("method/allocation=sensitivity method.allocation.candidates=[]", r"method\.allocation\.candidates must be"),
        ("method/allocation=sensitivity method.allocation.candidates=[1.2]", r"method\.allocation\.candidates must be"),
        ("method/allocation=sensitivity method.allocation.ppl_target=1", r"method\.allocation\.ppl_target must be"),
    ],
)
def test_mistakes_are_refused_by_name(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_method(validate(compose("config", override.split())))


def test_statistics_that_there_are_not_are_refused_before_any_window() -> None:
    @dataclass(frozen=True)
    class Fourth:
        needs: ClassVar[tuple[str, ...]] = ("gram", "fourth_moment")

        def __call__(self, statistics: Statistics) -> Metric:
            return Metric(statistics["fourth_moment"])

    with pytest.raises(UserError, match=r"method\.weighting=Fourth needs .* fourth_moment; there are only gram"):
        Method("own", Fourth(), Uniform(), FactorStorage())
