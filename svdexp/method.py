"""A compression method is its parts, and how they are built from configuration.

A part (weighting, allocation, storage, …) is a frozen dataclass whose fields are its options and whose
`__call__` is its mathematics. The dataclass is its own schema: types, misspelt keys and ranges are checked
here, when the part is built, and nowhere else. This is the only place that turns a `_target_` into code.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any

from hydra.utils import get_class

from svdexp.allocation import REPEATABLE, Allocation, Choosing, Whole
from svdexp.calibration import STATISTICS, of_backward
from svdexp.data import Excerpt
from svdexp.data.reads import check_windows_of, contents_of, described, excerpt_of
from svdexp.factorisation import Weighting, needs_of, takes_smaller_side
from svdexp.models.matrices import Matrix
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.typed import fill
from svdexp.schema import Config, Numerics, Save, SigmaFuse, Traversal
from svdexp.storage import FactorStorage, Storage
from svdexp.training import BlockRefine, Training, learns_stored
from svdexp.update import Update

# How many windows, None where that is not known yet, and their length in tokens.
WindowsSize = tuple[int | None, int]


@dataclass(frozen=True)
class Method:
    """Which error counts, who gets which rank, how factors are kept, and how they are repaired.

    Attributes:
        name: what the record calls it.
        weighting: statistics → L and R of ‖L (W − A B) R‖; None where the update makes the factors by itself, or there
            are none.
        allocation: budget and evidence → ranks.
        storage: what a rank costs, and the layer that holds it.
        update: repair after truncation, or None.
        training: repair by gradient descent after that, by name, in order; of what is stored, after storage.
        traversal: where the weighting's statistics come from.
        numerics: route to the optimum.
        sigma_fuse: which factor carries the singular values.
    """

    name: str
    weighting: Weighting | None
    allocation: Allocation
    storage: Storage
    update: Update | None = None
    training: Mapping[str, Training] = field(default_factory=dict)
    traversal: Traversal = Traversal.dense
    numerics: Numerics = Numerics.eigh
    sigma_fuse: SigmaFuse = SigmaFuse.balanced

    @property
    def parts(self) -> dict[str, object]:
        """The parts that it has, by the keys that configure them."""
        one = {"weighting": self.weighting, "allocation": self.allocation, "update": self.update}
        found: dict[str, object] = {f"method.{stage}": part for stage, part in one.items() if part is not None}
        trainings = {f"method.training.{name}": part for name, part in self.training.items()}
        return found | {"storage": self.storage} | trainings

    def described(self) -> str:
        """What identities of results say that every part had a share in."""
        return " ".join([repr(self), *(content for part in self.parts.values() for content in contents_of(part))])

    @property
    def excerpts(self) -> dict[str, Excerpt]:
        """What trainings learn from instead of the calibration windows, by their names."""
        found = {name: excerpt_of(part) for name, part in self.training.items()}
        return {name: replace(it, knob=f"method.training.{name}") for name, it in found.items() if it is not None}

    def check_windows(self, calibration: WindowsSize, own: Mapping[str, WindowsSize]) -> None:
        """Raise UserError where a part cannot use the windows that it gets: its `own`, by its key, or those that
        calibrate."""
        for knob, part in self.parts.items():
            count, length = own.get(knob, calibration)
            if count is not None:
                check_windows_of(part, count, length)

    @property
    def trains_factors(self) -> dict[str, Training]:
        """The trainings of plain factors, before storage."""
        return {name: part for name, part in self.training.items() if not learns_stored(part)}

    @property
    def trains_stored(self) -> dict[str, Training]:
        """Those of what is stored."""
        return {name: part for name, part in self.training.items() if learns_stored(part)}

    @property
    def needs_gradients(self) -> bool:
        """Whether weighting or storage looks at gradients."""
        return self.weighting is not None and bool(of_backward([*self.weighting.needs, *self.needs_of_storage]))

    @property
    def needs_of_storage(self) -> tuple[str, ...]:
        """The statistics that it looks at, of all layers or of experts."""
        return (*self.storage.needs, *self.storage.needs_of_experts)

    def statistics(self, layers: Iterable[Matrix]) -> dict[str, tuple[str, ...]]:
        """Which statistics the weighting is given, and beside it the storage, by layer."""
        return {layer.name: self.needs(layer.m, layer.n, lent=layer.rivals is not None) for layer in layers}

    def needs(self, m: int, n: int, *, lent: bool = False) -> tuple[str, ...]:
        """Which of a layer with W (m, n).

        They are of its smaller side, unless the route to the optimum goes over the larger one, what is decomposed or
        measured is another matrix than the W that activations have seen, or C and G are `lent` to other layers as well.
        """
        if self.weighting is None:
            return ()
        reduced = takes_smaller_side(self.numerics, m, n) and not (self.storage.split or self.measures or lent)
        kept = self.needs_of_storage if lent else self.storage.needs
        return tuple(dict.fromkeys([*needs_of(self.weighting, m, n, reduced), *kept]))

    @property
    def measures(self) -> bool:
        """Whether there are forms to choose from whose losses are not the tails of W's spectrum."""
        return not all(form.exact for form in self.storage.menu.values())

    @property
    def decomposition(self) -> dict[str, str]:
        """What decompositions depend on beside model, windows and layers, for their identity.

        Storages that hold all of W in the factors share them, and this says nothing of these.
        """
        return self.decomposition_of(self.storage)

    def decomposition_of(self, storage: Storage) -> dict[str, str]:
        """The same for one of several storages."""
        found = {"weighting": described(self.weighting), "numerics": self.numerics.value}
        if storage.split:
            return found | {"target": storage.split}
        return found | ({"moments": "both sides"} if self.measures else {})

    @property
    def follows_compressed(self) -> bool:
        """Whether blocks are compressed after what those before them give that are compressed already."""
        return self.update is not None or (self.weighting is not None and self.traversal is Traversal.blockwise)

    @property
    def replay(self) -> tuple[str, str] | None:
        """The first part that runs the blocks one by one, each on its own, and what to do instead; None: none does."""
        if self.weighting is not None and self.traversal is Traversal.blockwise:
            return "method.traversal=blockwise", "use method.traversal=dense"
        if self.update is not None:
            return f"method.update={type(self.update).__name__}", "use a method without an update"
        if self.storage.waits:
            return f"storage={type(self.storage).__name__}", "use one that looks at no inputs, such as storage=rtn_int4"
        for training in self.training.values():
            if isinstance(training, BlockRefine):
                return training.knob, "leave it out"
        return None

    def __post_init__(self) -> None:
        self._refuse_plain_words()
        self._refuse_idle_knobs()
        self._require_all_of_the_weights()
        self._require_a_choice_of_forms()
        if self.weighting is None:
            self._require_own_factors()
            return
        unknown = [need for need in self.weighting.needs if need not in STATISTICS]
        require(
            not unknown,
            f"method.weighting={type(self.weighting).__name__} needs the statistics {', '.join(unknown)}; there are "
            f"only {', '.join(STATISTICS)}",
        )
        for part, needs in (("the weighting", self.weighting.needs), ("the storage", self.needs_of_storage)):
            gradients = of_backward(needs)
            if gradients and self.traversal is Traversal.blockwise:
                raise UserError(
                    f"method.traversal=blockwise runs no backward pass, but {part} needs {gradients[0]}; "
                    "use method.traversal=dense"
                )

    def _refuse_plain_words(self) -> None:
        """Raise UserError for a word in the place of a member of a closed list, which is none where members are
        compared: only objects that Python made can hold one."""
        for knob, part in {"method": self, **self.parts}.items():
            for option in fields(part) if is_dataclass(part) else ():
                kind, value = option.type, getattr(part, option.name)
                if isinstance(kind, type) and issubclass(kind, StrEnum) and not isinstance(value, kind):
                    members = " or ".join(f"{kind.__name__}.{member.name}" for member in kind)
                    raise UserError(f"{knob}.{option.name}={value!r} is a plain word: give {members}")

    def _refuse_idle_knobs(self) -> None:
        """Raise UserError for an option that this method's other parts leave without effect."""
        weighting, update, allocation = self.weighting, self.update, type(self.allocation).__name__
        if weighting is None:
            for knob in fields(self):  # those with a choice of words say how to weigh and to decompose
                value = getattr(self, knob.name)
                chosen = isinstance(value, StrEnum) and value is not knob.default
                require(not chosen, f"method.{knob.name}={value} has no effect, because method.weighting is null")
        elif not weighting.needs:
            require(
                self.traversal is Traversal.dense,
                f"method.traversal={self.traversal} has no effect, because method.weighting={type(weighting).__name__} "
                "needs no statistics",
            )
        if isinstance(self.allocation, Whole):
            idle = {"weighting": weighting, "update": update, "training": self.trains_factors}
            for name, part in idle.items():
                require(
                    not part,
                    f"method.{name} has no effect, because method.allocation={allocation} makes no factors; "
                    + (f"set {stored_knob(self.training)}" if name == "training" else "method=quantise has none of it"),
                )
        elif weighting and update and update.makes_factors and not self.allocation.needs_spectra:
            raise UserError(
                f"method.weighting has no effect, because method.update={type(update).__name__} makes its own factors "
                f"and method.allocation={allocation} looks at no spectra; set method.weighting=null"
            )

    def _require_all_of_the_weights(self) -> None:
        """Raise UserError for what makes or trains factors of all of W where the storage keeps a part of it beside."""
        storage = self.storage
        makes = self.update is not None and self.update.makes_factors
        clashes = {
            "method.update": (makes, "leave it out"),
            "method.training": (bool(self.trains_factors), f"set {stored_knob(self.training)}"),
        }
        for knob, (clash, instead) in clashes.items():
            require(
                not (storage.split and clash),
                f"storage={type(storage).__name__} has factors of a part of each matrix, but {knob} fits them to all "
                f"of it; {instead} or use storage=factors",
            )

    def _require_a_choice_of_forms(self) -> None:
        """Raise UserError unless storage and allocation agree on whether there are forms to choose from."""
        allocation, storage = type(self.allocation).__name__, type(self.storage).__name__
        if isinstance(self.allocation, Choosing):
            require(
                bool(self.storage.menu),
                f"method.allocation={allocation} chooses among the forms of storage=forms, but there is "
                f"storage={storage}; use method=mixed, which has both",
            )
        if not self.storage.menu:
            return
        require(
            isinstance(self.allocation, Choosing),
            f"storage={storage} lets a matrix be one of several forms, among which method.allocation={allocation} does "
            "not choose; use method=mixed, or method/allocation=forms",
        )
        repairs = {
            "update": (self.update, "leave it out"),
            "training": (self.trains_factors, f"set {stored_knob(self.training)}"),
        }
        for name, (part, instead) in repairs.items():
            require(not part, f"storage={storage} has codes, which method.{name} does not repair; {instead}")
        require(
            self.traversal is Traversal.dense,
            f"storage={storage} chooses by what the dense model's statistics say; use method.traversal=dense",
        )

    def _require_own_factors(self) -> None:
        """Without a weighting there is nothing to decompose."""
        require(
            isinstance(self.allocation, Whole) or (self.update is not None and self.update.makes_factors),
            "method.weighting=null needs an update that makes factors by itself, such as method/update=ipca, or "
            "method/allocation=whole, which wants none",
        )
        require(
            not self.allocation.needs_spectra,
            f"method.allocation={type(self.allocation).__name__} looks at weighted spectra, but method.weighting is "
            "null; choose one with method/weighting=",
        )

    def require_elastic(self, fixed: Mapping[str, int | None]) -> None:
        """Raise UserError unless nothing but the choice of ranks depends on the ratio: components then serve all.

        `fixed` are the ranks that the targets fix, by pattern.
        """
        require(self.weighting is not None, "save=elastic keeps weighted components, but method.weighting is null")
        require(
            self.storage == FactorStorage(),
            "save=elastic keeps components of plain factors, which any rank is a part of; use storage=factors, "
            f"not {type(self.storage).__name__}",
        )
        require(not fixed, "save=elastic chooses all ranks again for every ratio; leave targets.ranks out")
        require(
            type(self.allocation) in REPEATABLE.values(),
            "save=elastic chooses ranks again from spectra alone, which "
            f"method.allocation={type(self.allocation).__name__} cannot; use one of {', '.join(REPEATABLE)}",
        )
        require(
            self.update is None,
            "save=elastic keeps components that serve every ratio, but method.update fits them to one; "
            "use method.update=null or save=checkpoint",
        )
        require(
            not self.training,
            "save=elastic keeps components that serve every ratio, but method.training fits them to one; "
            "leave it out or use save=checkpoint",
        )
        require(
            self.traversal is Traversal.dense,
            "save=elastic keeps components that serve every ratio, but method.traversal=blockwise fits them to one; "
            "use method.traversal=dense or save=checkpoint",
        )


def stored_knob(trainings: Mapping[str, Training]) -> str:
    """How trainings of plain factors are told to train what is stored, for a sentence."""
    names = [name for name, part in trainings.items() if hasattr(part, "stored") and not part.stored]
    return " and ".join(f"method.training.{name}.stored=true" for name in names) or "another method.training"


# What a part must have for the role that its knob gives it.
ROLES: dict[str, tuple[str, ...]] = {
    "weighting": ("needs", "__call__"),
    "allocation": ("needs_spectra", "__call__"),
    "storage": ("bits", "layer", "target", "whole", "finish"),  # svdexp.storage.Storage says the last three
    "update": ("makes_factors", "start"),
    "training": ("check", "tokens", "__call__"),
    "tracker": ("start",),
}


def build(options: dict[str, Any], knob: str) -> Any:
    """The dataclass named by `options['_target_']`, filled with the other options.

    Raises:
        UserError: unknown target, one of another role, misspelt option, wrong type, or value out of range.
    """
    values = dict(options)
    target = values.pop("_target_", None)
    if target is None:
        raise UserError(f"{knob} needs a _target_, the dotted path of a dataclass")
    try:
        part = get_class(target)
    except Exception as error:
        raise UserError(f"{knob}._target_={target} cannot be imported: {error}") from error
    if not is_dataclass(part):
        raise UserError(f"{knob}._target_={target} is not a dataclass")
    role = knob.removeprefix("method.").partition(".")[0]
    lacking = [name for name in ROLES[role] if not hasattr(part, name) and name not in part.__dataclass_fields__]
    require(not lacking, f"{knob}._target_={target} is no {role}: it has no {' and no '.join(lacking)}")
    return fill(part, values, knob)


def build_method(config: Config, given: Mapping[str, Any] | None = None) -> Method:
    """The stages of `config.method` and `config.storage` as one object.

    Args:
        config: the run's.
        given: parts that are objects already, by the fields of `Method`; of trainings, all of them by their names.

    Raises:
        UserError: an option is wrong, parts contradict each other, or the run cannot be saved as `config.save` says.
    """
    parts, given = config.method, given or {}

    def part(stage: str, options: dict[str, Any] | None) -> Any:
        knob = stage if stage == "storage" else f"method.{stage}"
        if stage in given:
            return require_role(given[stage], knob)
        return build(options, knob) if options else None

    trainings = given.get("training")
    method = Method(
        name=parts.name,
        weighting=part("weighting", parts.weighting),
        allocation=part("allocation", parts.allocation),
        storage=part("storage", config.storage),
        update=part("update", parts.update),
        training={name: build(options, f"method.training.{name}") for name, options in parts.training.items()}
        if trainings is None
        else {name: require_role(training, f"method.training.{name}") for name, training in trainings.items()},
        traversal=parts.traversal,
        numerics=parts.numerics,
        sigma_fuse=parts.sigma_fuse,
    )
    if config.save is Save.elastic:
        method.require_elastic(config.targets.ranks)
    return method


def require_role(part: Any, knob: str) -> Any:
    """`part`, an object.

    Raises:
        UserError: it has not what its role takes.
    """
    role = knob.removeprefix("method.").partition(".")[0]
    lacking = [name for name in ROLES[role] if not hasattr(part, name)]
    require(not lacking, f"{knob}={part!r} is no {role}: it has no {' and no '.join(lacking)}")
    require(not isinstance(part, type), f"{knob}={part!r} is a class: give an object of it, with its options")
    return part
