"""What Stable Diffusion is given where there is no text.

Its text encoder is a CLIP of the package `transformers`, which is imported when it is
needed.  Of the encoder's configuration the sizes and the name of the activation are
read and nothing else: `transformers` does much more with one.

References
----------
Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffstategrad._options import is_real
from diffstategrad.models.archive import read_tensors
from diffstategrad.models.folder import naming, read_config, read_weights
from diffstategrad.models.keys import Row, fill
from diffstategrad.models.unet import check_size

__all__ = ["empty_prompt"]

_FILE = "empty_prompt.safetensors"
_TOKENS, _BEGIN, _END = 77, 49406, 49407
_PADDING = {"<|endoftext|>": _END, "!": 0}  # of Stable Diffusion 1 and 2
_ACTIVATIONS = ("quick_gelu", "gelu")
_SIZES = {
    "vocab_size": (_END + 1, 1 << 20),
    "max_position_embeddings": (_TOKENS, 1 << 12),
    "hidden_size": (1, 1 << 13),
    "intermediate_size": (1, 1 << 15),
    "num_hidden_layers": (1, 64),
    "num_attention_heads": (1, 256),
}


def empty_prompt(folder: str | os.PathLike[str]) -> Tensor:
    """The text encoder's states of no text, (1, 77, width), float32.

    They are read from ``empty_prompt.safetensors`` in the folder, which holds them as
    its only tensor, else computed from ``text_encoder/``, which takes the package
    `transformers`.  Save what this returns under that name, and neither is needed.

    Raises
    ------
    ValueError
        If neither is possible, or the encoder's files are not right.
    """
    folder = Path(folder)
    if (cached := folder / _FILE).is_file():
        tensors = read_tensors(cached)
        if len(tensors) != 1:
            raise ValueError(f"{cached}: holds {len(tensors)} tensors, must be one")
        (states,) = tensors.values()
        return states.float()
    if not (folder / "text_encoder").is_dir():
        raise ValueError(
            f"{folder}: needs {_FILE}, the states of the empty prompt, or text_encoder/"
        )
    encoder = _encoder(folder / "text_encoder")
    tokens = torch.full((1, _TOKENS), _padding(folder / "tokenizer"))
    tokens[0, :2] = torch.tensor([_BEGIN, _END])
    positions = torch.arange(_TOKENS)[None]  # the encoder's own are on the device meta
    with torch.no_grad():
        return encoder(input_ids=tokens, position_ids=positions).last_hidden_state


def _encoder(place: Path) -> Any:
    """The `transformers.CLIPTextModel` of a folder, in float32."""
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        raise ValueError(
            f"{place.parent}: has no {_FILE}; the states of the empty prompt take the "
            f"package transformers, pip install 'diffstategrad[text]' ({error})"
        ) from error
    config = read_config(place / "config.json")
    tensors = read_weights(place, "model")
    with naming(place):
        options: dict[str, Any] = {
            name: check_size(name, config.get(name), *ends)
            for name, ends in _SIZES.items()
        }
        if options["hidden_size"] % options["num_attention_heads"]:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        eps: Any = config.get("layer_norm_eps")
        if not is_real(eps) or not 0 < eps < 1:
            raise ValueError(f"layer_norm_eps must be in (0, 1), got {eps!r}")
        act = config.get("hidden_act")
        if act not in _ACTIVATIONS:
            names = " or ".join(_ACTIVATIONS)
            raise ValueError(f"hidden_act must be {names}, got {act!r}")
    options |= {"layer_norm_eps": float(eps), "hidden_act": act}
    options["attn_implementation"] = "sdpa"
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**options))
    # which some versions of the package and of its files have around all names
    prefix = "text_model."
    inner = getattr(encoder, prefix[:-1], encoder)
    rows = [Row(name, "copy", name.removeprefix(prefix)) for name in tensors]
    rows = [row for row in rows if row.target != "embeddings.position_ids"]
    with naming(tensors.path):
        fill(inner, tensors, rows)
    return encoder


def _padding(tokenizer: Path) -> int:
    """The token after the end of a text."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (tokenizer / name).is_file():
            continue
        pad = read_config(tokenizer / name).get("pad_token")
        if isinstance(pad, dict):
            pad = pad.get("content")
        if isinstance(pad, str):
            if pad not in _PADDING:
                raise ValueError(f"{tokenizer / name}: unknown pad_token {pad!r}")
            return _PADDING[pad]
    return _END
