// @vitest-environment happy-dom
import { describe, expect, it } from "vitest";
import { blocks, highlight } from "../src/model/markdown";

const html = (text: string) => blocks(text).join("\n");

describe("Markdown", () => {
  it("makes one piece of HTML a block", () => {
    expect(blocks("# A\n\nb **c**\n\n- d\n- e")).toHaveLength(3);
    expect(html("b **c** `d`")).toContain("b <strong>c</strong> <code>d</code>");
  });

  it("colours code by classes, known languages only", () => {
    expect(highlight("def f(): pass", "python")).toContain('class="hljs-keyword"');
    expect(highlight("<b>", "klingon")).toBe("&#60;b&#62;");
    expect(html("```python\nx = 1\n```")).toContain('class="copy-code"');
  });

  it("keeps a block as it was while the next one grows", () => {
    const [first] = blocks("one\n\ntwo");
    expect(blocks("one\n\ntwo and more")[0]).toBe(first);
  });

  it("follows links that are defined elsewhere in the text", () => {
    expect(html("[a][b]\n\n[b]: https://example.invalid/")).toContain('href="https://example.invalid/"');
    expect(html("[a][b]")).not.toContain("href");
  });

  // The second wall, DOMPurify, needs a real browser: the flows in tests/web stand before it.
  it.each([
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    '<a href="javascript:alert(1)">x</a>',
    "<svg onload=alert(1)>",
    '<iframe src="https://example.invalid"></iframe>',
    '<p style="position:fixed">x</p>',
    "[x](javascript:alert(1))",
    "[x](data:text/html,1)",
    "[x](vbscript:a)",
    '![x](https://example.invalid/"onerror="alert(1))',
    '```"><img src=x onerror=alert(1)>\nx\n```',
  ])("makes nothing that runs or loads of %s", (text) => {
    const place = document.createElement("div");
    place.innerHTML = html(text);
    expect(place.querySelectorAll("script, img, svg, iframe, [style], [onerror], [onload]")).toHaveLength(0);
    for (const link of place.querySelectorAll("a")) expect(link.getAttribute("href")).toMatch(/^https:/);
  });
});
