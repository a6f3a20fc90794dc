// Which of the side panels are drawers on this screen, and which of them is open.

import { computed, signal } from "@preact/signals";

type Panel = "list" | "window";

function media(query: string) {
  const list = window.matchMedia(query);
  const matches = signal(list.matches);
  list.addEventListener("change", () => (matches.value = list.matches));
  return matches;
}

const narrow = media("(max-width: 819px)");
const middling = media("(max-width: 1179px)");

export const drawers = computed<Record<Panel, boolean>>(() => ({ list: narrow.value, window: middling.value }));
export const opened = signal<Panel | null>(null);

let before: HTMLElement | null = null;

export function openDrawer(panel: Panel): void {
  before = document.activeElement as HTMLElement | null;
  opened.value = panel;
  requestAnimationFrame(() => document.querySelector<HTMLElement>(`#${panel}-panel .shut`)?.focus());
}

export function shutDrawer(): void {
  if (!opened.peek()) return;
  opened.value = null;
  // What opened it takes the focus back once the page around it is no longer inert.
  requestAnimationFrame(() => before?.focus());
}
