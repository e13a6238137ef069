"""What a model is, as a hash."""

import json

from transformers import PreTrainedModel

from svdexp.models.residency import readable_tensors
from svdexp.runtime.shelves import fingerprint, identity

# Keys of a model's config that do not change what it computes; its number format shows in its tensors.
INCIDENTAL = ("_name_or_path", "architectures", "auto_map", "dtype", "svdexp", "transformers_version")


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of all that a model stores and of its config: equal weights under another RoPE base differ."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in INCIDENTAL}
    weights = fingerprint(readable_tensors(model))
    return identity(weights=weights, config=json.dumps(config, sort_keys=True, default=str))
