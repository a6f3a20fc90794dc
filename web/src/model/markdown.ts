// Markdown to safe HTML. Raw HTML in the text is shown as text; what is left goes through DOMPurify all the same.

import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import markdown from "highlight.js/lib/languages/markdown";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { Marked, type Token, type TokensList } from "marked";

const LANGUAGES = { bash, c, cpp, css, diff, go, java, javascript, json, markdown, python, rust, sql, typescript, xml, yaml };
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

/** The code as HTML, coloured by classes where the language is known. */
export function highlight(code: string, language: string): string {
  return hljs.getLanguage(language) ? hljs.highlight(code, { language, ignoreIllegals: true }).value : escape(code);
}

const SAFE = /^(?:https?:|mailto:|#)/i;

const link = (href: string, inner: string): string => (SAFE.test(href) ? `<a href="${escape(href)}">${inner}</a>` : inner);

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    html: ({ text }) => escape(text),
    // A picture would be fetched from somewhere else, which this page never does: it becomes a link.
    image: ({ href, text }) => link(href, escape(text || href)),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code: ({ text, lang }) => {
      const language = (lang ?? "").trim().split(/\s+/)[0]!.toLowerCase();
      const title = escape(language || "text");
      return (
        `<figure class="code"><figcaption><span>${title}</span>` +
        `<button type="button" class="copy-code">Copy</button></figcaption>` +
        `<pre tabindex="0"><code>${highlight(text, language)}</code></pre></figure>\n`
      );
    },
  },
});

const TAGS = [
  "a", "b", "blockquote", "br", "button", "code", "del", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5",
  "h6", "hr", "i", "li", "ol", "p", "pre", "s", "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead",
  "tr", "ul",
];
const ATTRIBUTES = ["href", "class", "type", "start", "align", "tabindex", "target", "rel"];

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
});

function clean(html: string): string {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    ALLOWED_URI_REGEXP: SAFE,
  });
}

const kept = new Map<string, string>();
const KEPT_BLOCKS = 2000;

/**
 * The blocks of a text as safe HTML. A block that was seen before is not made again, so that an answer that grows word by
 * word costs the work of its last block only, and the blocks before it stay as they are in the page.
 */
export function blocks(text: string): string[] {
  const tokens = marked.lexer(text);
  return tokens.filter((token) => token.type !== "space" && token.type !== "def").map((token) => block(token, tokens));
}

function block(token: Token, all: TokensList): string {
  const plain = Object.keys(all.links).length === 0;
  const known = plain ? kept.get(token.raw) : undefined;
  if (known !== undefined) return known;
  const html = clean(marked.parser(Object.assign([token], { links: all.links })));
  if (plain) {
    if (kept.size >= KEPT_BLOCKS) kept.clear();
    kept.set(token.raw, html);
  }
  return html;
}
