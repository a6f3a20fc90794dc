"""How byte-level vocabularies spell bytes as visible characters (GPT-2's `bytes_to_unicode`).

Printable Latin-1 characters spell themselves; the other 68 bytes are spelled U+0100 and up, in order.
"""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    r"""Character to byte.

    >>> len(CHARACTER_TO_BYTE), CHARACTER_TO_BYTE["a"], CHARACTER_TO_BYTE["\u0120"]
    (256, 97, 32)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


CHARACTER_TO_BYTE = _alphabet()


def spelled_bytes(token: str) -> bytes:
    r"""The bytes that a byte-level token stands for; a token with any other character stands for itself.

    >>> spelled_bytes("\u0120caf\u00c3\u00a9"), spelled_bytes("a b")
    (b' caf\xc3\xa9', b'a b')
    """
    try:
        return bytes(CHARACTER_TO_BYTE[character] for character in token)
    except KeyError:
        return token.encode("utf-8", errors="replace")
