import { useEffect } from "preact/hooks";
import { answering, stop } from "../state/answering";
import { drawers, opened, shutDrawer } from "../state/layout";
import { current } from "../state/library";
import { hush, notice, spoken } from "../state/notices";
import { Composer } from "./Composer";
import { Header } from "./Header";
import { Library } from "./Library";
import { Panel } from "./Panel";
import { Talk } from "./Talk";

function onKey(event: KeyboardEvent): void {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (opened.peek()) shutDrawer();
  else if (answering.peek()) stop();
}

export function App() {
  useEffect(() => {
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  useEffect(() => {
    document.title = `${current.value.title} · Sash`;
  }, [current.value.title]);
  const drawn = opened.value !== null && drawers.value[opened.value];
  return (
    <>
      <a class="skip" href="#message-box" onClick={(event) => { event.preventDefault(); document.getElementById("message-box")?.focus(); }}>
        Skip to the message box
      </a>
      <div class="house">
        <Library />
        <main class="room" inert={drawn}>
          <Header />
          <Talk />
          <Composer />
        </main>
        <Panel />
        {drawn && <div class="veil" onClick={shutDrawer} />}
      </div>
      <div class="hidden" role="status" aria-live="polite">{spoken.value}</div>
      <Toast />
    </>
  );
}

function Toast() {
  const shown = notice.value;
  return (
    <div class="toast-place" role="status">
      {shown && (
        <div class="toast">
          <span>{shown.text}</span>
          {shown.action && (
            <button type="button" class="plain" onClick={() => { const run = shown.action!.run; hush(); run(); }}>
              {shown.action.label}
            </button>
          )}
        </div>
      )}
    </div>
  );
}
