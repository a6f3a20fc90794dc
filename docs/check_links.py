"""Check that every relative link of the project's pages leads to a file, and every #anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")


def anchors(text: str) -> set[str]:
    """The anchors that headings get: lower case, punctuation dropped, blanks to hyphens, repeats numbered."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", FENCED.sub("", text), re.MULTILINE):
        plain = LINK.sub(lambda match: match[0][1 : match[0].index("]")], heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        seen = found.get(slug, 0)
        found[slug] = seen + 1
        if seen:
            found[f"{slug}-{seen}"] = 1
    return set(found)


def broken_links(page: Path) -> list[str]:
    """What is wrong with the links of a page, a line each."""
    wrong = []
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(CODE.sub("", FENCED.sub("", text))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(f"{page.relative_to(ROOT)}: {target} leads nowhere")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{page.relative_to(ROOT)}: {target} names no heading")
    return wrong


def main() -> None:
    """Check all pages; exit with 1 if a link is broken."""
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    wrong = [line for page in pages for line in broken_links(page)]
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"{len(pages)} pages, no broken link")


if __name__ == "__main__":
    main()
