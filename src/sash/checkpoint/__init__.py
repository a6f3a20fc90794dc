"""Weights on disk, whatever their layout: Hugging Face folders, Mistral-native folders, GGUF files.

Every parser here is bounded: a size that a file claims is checked against the file before a byte is allocated for it.
Nothing that a file holds is ever executed. Importing this room imports no torch; reading a tensor does.
"""

from sash.checkpoint.source import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
