"""Which class of transformers a configuration is of: a causal language model, or one that reads images, too."""

from collections.abc import Iterator
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

AUTO_CLASSES: dict[str, Any] = {
    "AutoModelForCausalLM": AutoModelForCausalLM,
    "AutoModelForImageTextToText": AutoModelForImageTextToText,
}


def auto_class_of(config: Any) -> str:
    """The name of the Auto class that makes a model of `config`: of what reads images only where there is no other.

    A model with code of its own says so itself. Where the first class takes the text part out of a config, it must know
    the config of that, too: it will be saved. What neither class knows is left to the first.
    """
    return next(_classes(config), "AutoModelForCausalLM")


def auto_classes_of(config: Any) -> list[str]:
    """The names of all Auto classes that make this model of `config`; the first is `auto_class_of`."""
    names = list(_classes(config)) or [auto_class_of(config)]
    made = {name: AUTO_CLASSES[name]._model_mapping.get(type(config), None) for name in names}
    return [name for name in names if made[name] is made[names[0]]]


def is_language_model(config: Any) -> bool:
    """Whether either class knows it."""
    return any(_classes(config))


def _classes(config: Any) -> Iterator[str]:
    own = getattr(config, "auto_map", None) or {}
    for name, auto in AUTO_CLASSES.items():
        known = auto._model_mapping
        parts = [config, config.get_text_config()] if auto is AutoModelForCausalLM and config else [config]
        if name in own or all(type(part) in known for part in parts):
            yield name


def auto_class(config: Any) -> Any:
    """The Auto class itself."""
    return AUTO_CLASSES[auto_class_of(config)]


def sees_images(config: Any) -> bool:
    """Whether the model of `config` reads images beside text: it has a vision tower, or loads as such a model."""
    return auto_class_of(config) == "AutoModelForImageTextToText" or getattr(config, "vision_config", None) is not None
