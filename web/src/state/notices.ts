// Short notices at the foot of the page, and what is read out to those who listen.

import { signal } from "@preact/signals";

export interface Notice {
  text: string;
  action?: { label: string; run: () => void };
}

export const notice = signal<Notice | null>(null);
/** What a screen reader says next, politely. */
export const spoken = signal("");

const SECONDS = 7;
let timer: ReturnType<typeof setTimeout> | undefined;

export function say(text: string, action?: Notice["action"]): void {
  clearTimeout(timer);
  notice.value = { text, ...(action && { action }) };
  timer = setTimeout(() => (notice.value = null), SECONDS * 1000);
}

export function hush(): void {
  clearTimeout(timer);
  notice.value = null;
}

export function speak(text: string): void {
  // The same words twice are two messages: an invisible sign makes them differ.
  spoken.value = spoken.peek() === text ? `${text}\u200b` : text;
}
