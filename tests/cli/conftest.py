"""A small random Mistral as a Hugging Face folder, and the command line as a user calls it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sash import cli

WINDOW = 16
N_LAYERS = 2
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def write_model(folder: Path, *, window: int | None = WINDOW, chat: bool = True, seed: int = 0) -> Path:
    """A model that sees `window` keys, with a token for every byte."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    tokens: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | ({"chat_template": CHATML} if chat else {})))
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": len(SPECIAL) + len(alphabet),
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": window,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(len(SPECIAL) + len(alphabet), seed), folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Random\n")
    return folder


def _weights(vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens": (vocab_size, 32), "lm_head": (vocab_size, 32), "model.norm": (32,)}
    for layer in range(N_LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{p}_proj": ((32 if p in "qo" else 16), 32) for p in "qkvo"}
        shapes |= {f"{name}.mlp.{p}_proj": ((40, 32) if p != "down" else (32, 40)) for p in ("gate", "up", "down")}
        shapes |= {f"{name}.input_layernorm": (32,), f"{name}.post_attention_layernorm": (32,)}
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    # Control tokens are made unlikely, so that answers have text and end where they are told to.
    weights["lm_head.weight"][: len(SPECIAL)] = 0
    return weights


@pytest.fixture(scope="session")
def windowed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "windowed")


@pytest.fixture(scope="session")
def full_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "full", window=None)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "base", chat=False)


Sash = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sash(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sash:
    """Runs the command line over an empty store; `stdin` is what standard input holds."""
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = cli.execute([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class Terminal:
    """The command line in a process of its own, at a terminal that we hold the other end of."""

    CONTROLLING = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, '-m', 'sash', *sys.argv[1:]])"
    )

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CONTROLLING, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "OMP_NUM_THREADS": "1", **environment},
        )
        os.close(slave)
        self.shown = ""

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, done: Callable[[str], bool], seconds: float = 240) -> str:
        """What is shown from here until `done` says that it suffices."""
        start, deadline = len(self.shown), time.monotonic() + seconds
        while not done(self.shown[start:]):
            assert time.monotonic() < deadline, f"waited in vain; shown: {self.shown[start:]!r}"
            if not select.select([self._master], [], [], 0.1)[0]:
                assert self.process.poll() is None, f"it ended; shown: {self.shown[start:]!r}"
                continue
            try:
                self.shown += os.read(self._master, 65536).decode("utf-8", errors="replace")
            except OSError:
                assert done(self.shown[start:]), f"it ended; shown: {self.shown[start:]!r}"
                break
        return self.shown[start:]

    def wait(self, seconds: float = 240) -> int:
        """The exit code; what is still shown is read, so that nothing blocks."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; shown: {self.shown!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode("utf-8", errors="replace")
                except OSError:
                    time.sleep(0.05)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts the command line at a terminal."""
    opened: list[Terminal] = []

    def start(*arguments: str | Path) -> Terminal:
        environment = {"SASH_HOME": str(tmp_path / "home"), "XDG_STATE_HOME": str(tmp_path / "state")}
        opened.append(Terminal([str(argument) for argument in arguments], environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
