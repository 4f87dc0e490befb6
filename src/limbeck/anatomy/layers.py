"""Finding a transformer's stack of layers without a table of architectures."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from limbeck.errors import InputError


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path and the list of a model's layers: its one `ModuleList` with `num_hidden_layers` entries.

    Raises:
        InputError: there is no such list (ALBERT shares one layer's weights), or more than one (encoder-decoders).
    """
    depth = model.config.num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    outermost = [(n, m) for n, m in found if not any(n.startswith(f"{other}.") for other, _ in found if other != n)]
    several = len(outermost) > 1 or model.config.is_encoder_decoder  # the decoder may be of another depth
    if several or not outermost:
        reason = "two stacks" if several else "it shares one layer's weights or names its layers in its own way"
        raise InputError(
            f"{model.config.model_type} has no single stack of {depth} layers to cut ({reason}); "
            "give student.model=CHECKPOINT or student.shape={...} instead of student.layers"
        )
    return outermost[0]
