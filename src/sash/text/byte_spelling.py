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

# What no byte is spelled with becomes a character that is no byte either, so that encoding it fails.
_TO_LATIN_1 = {ord(character): chr(byte) for character, byte in CHARACTER_TO_BYTE.items()} | {
    code: "\uffff" for code in range(256) if chr(code) not in CHARACTER_TO_BYTE
}


def spelled_bytes(token: str) -> bytes:
    r"""The bytes that a byte-level token stands for; a token with any other character stands for itself.

    >>> spelled_bytes("\u0120caf\u00c3\u00a9"), spelled_bytes("a b")
    (b' caf\xc3\xa9', b'a b')
    >>> all(spelled_bytes(character) == bytes([byte]) for character, byte in CHARACTER_TO_BYTE.items())
    True
    """
    try:
        return token.translate(_TO_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8", errors="replace")
