// What the page keeps besides conversations: the theme for good, the API key until the tab is closed.

import { effect, signal } from "@preact/signals";
import type { Settings } from "../model/conversation";

export type Theme = "auto" | "light" | "dark";

const THEME = "sash-theme";
const KEY = "sash-api-key";
const SETTINGS = "sash-settings";

function read(storage: "localStorage" | "sessionStorage", name: string): string | null {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

function write(storage: "localStorage" | "sessionStorage", name: string, value: string): void {
  try {
    if (value) window[storage].setItem(name, value);
    else window[storage].removeItem(name);
  } catch {
    // A browser that keeps nothing still shows the page.
  }
}

const kept = read("localStorage", THEME);
export const theme = signal<Theme>(kept === "light" || kept === "dark" ? kept : "auto");
export const apiKey = signal(read("sessionStorage", KEY) ?? "");

effect(() => {
  if (theme.value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
  write("localStorage", THEME, theme.value === "auto" ? "" : theme.value);
});
effect(() => write("sessionStorage", KEY, apiKey.value));

/** The sampling that the last conversation used, for the next one. */
export function lastSettings(): Settings {
  try {
    const { seed: _, ...rest } = JSON.parse(read("localStorage", SETTINGS) ?? "{}") as Settings;
    return rest;
  } catch {
    return {};
  }
}

export function keepSettings(settings: Settings): void {
  write("localStorage", SETTINGS, JSON.stringify(settings));
}
