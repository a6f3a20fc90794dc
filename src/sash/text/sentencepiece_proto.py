"""A SentencePiece model written in memory, so that SentencePiece's own code tokenises vocabularies from elsewhere.

Only the few fields that matter are written, in protobuf's wire format by hand (sentencepiece_model.proto of the
SentencePiece repository gives the field numbers), for the Python protobuf package is not a dependency.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

_VARINT, _BYTES, _FLOAT = 0, 2, 5
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_VOCAB_SIZE, _TRAINER_BYTE_FALLBACK, _TRAINER_UNKNOWN_ID = 3, 4, 35, 40
_NORMALIZER_NAME, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_REMOVE_SPACES, _NORMALIZER_ESCAPE_SPACES = 1, 3, 4, 5
_BPE = 2


class PieceType(IntEnum):
    """What a piece is. GGUF's `tokenizer.ggml.token_type` uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, lowest first.

    >>> _varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def encode_pieces(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> bytes:
    """The vocabulary part of a model; the three sequences have one length."""
    text_tag, score_tag = bytes([_PIECE_TEXT << 3 | _BYTES]), bytes([_PIECE_SCORE << 3 | _FLOAT])
    kind_tag, block_tag = bytes([_PIECE_TYPE << 3 | _VARINT]), bytes([_MODEL_PIECES << 3 | _BYTES])
    short = [_varint(length) for length in range(128)]  # nearly every length, made once
    pack = struct.Struct("<f").pack
    out: list[bytes] = []
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        raw = piece.encode("utf-8")
        length = short[len(raw)] if len(raw) < 128 else _varint(len(raw))
        body = b"".join((text_tag, length, raw, score_tag, pack(score), kind_tag, short[kind]))
        out += (block_tag, short[len(body)] if len(body) < 128 else _varint(len(body)), body)
    return b"".join(out)


def encode_settings(*, size: int, unknown_id: int, byte_fallback: bool, dummy_prefix: bool) -> bytes:
    """The rest of a model: byte-pair encoding by score, no normalisation, spaces kept and written as U+2581."""
    trainer = (
        _integer(_TRAINER_MODEL_TYPE, _BPE)
        + _integer(_TRAINER_VOCAB_SIZE, size)
        + _integer(_TRAINER_BYTE_FALLBACK, int(byte_fallback))
        + _integer(_TRAINER_UNKNOWN_ID, unknown_id)
    )
    normalizer = (
        _block(_NORMALIZER_NAME, b"identity")
        + _integer(_NORMALIZER_DUMMY_PREFIX, int(dummy_prefix))
        + _integer(_NORMALIZER_REMOVE_SPACES, 0)
        + _integer(_NORMALIZER_ESCAPE_SPACES, 1)
    )
    return _block(_MODEL_TRAINER, trainer) + _block(_MODEL_NORMALIZER, normalizer)
