"""The random model of the rivals with a tokenizer that writes plain ASCII, so that every token shows as text at once.

A server holds back bytes until they are whole characters; with tokens of random bytes no gap between two pieces of
text would be a gap between two tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import string
from itertools import islice, product
from pathlib import Path

from rival_engines import models, random_model
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers import models as backends
from tokenizers import pre_tokenizers as pre

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16, "num_attention_heads": 4}
"""What is smaller in the model of --quick."""

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def ascii_model(folder: Path, *, quick: bool) -> Path:
    """The folder of the model that is served, made if it is not there.

    Args:
        folder: where the rivals' models and environments are.
        quick: take a model of 4M parameters instead of 1.0B.
    """
    path = folder / "models" / ("serving-quick" if quick else "serving")
    if (path / "config.json").exists():
        return path
    if quick:
        random_model.CONFIG |= SMALL
        source = random_model.make(folder / "models" / "random-quick")
    else:
        source = models.hugging_face(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    os.link(source / "model.safetensors", path / "model.safetensors")
    shutil.copy(source / "generation_config.json", path)
    _write_tokenizer(path)
    # Last: it tells that all the rest is there.
    shutil.copy(source / "config.json", path)
    return path


def _write_tokenizer(path: Path) -> None:
    """A byte-level BPE whose tokens are bytes, pairs and triples of printable ASCII characters."""
    alphabet = sorted(pre.ByteLevel.alphabet())
    letters = string.ascii_letters + string.digits + string.punctuation
    room = random_model.CONFIG["vocab_size"] - len(random_model.SPECIAL) - len(alphabet)
    pairs = list(product(letters, letters))
    triples = islice(product((a + b for a, b in pairs), letters), room - len(pairs))
    merges = [*pairs, *triples]
    words = [*random_model.SPECIAL, *alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(backends.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in random_model.SPECIAL])
    backend.save(str(path / "tokenizer.json"))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **named}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
