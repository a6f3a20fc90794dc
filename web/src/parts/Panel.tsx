import { path, type Settings } from "../model/conversation";
import { rate, reuse, seconds } from "../model/format";
import { number, sentence, sums, WORDS, type Kind } from "../model/view";
import { drawers, openDrawer, opened, shutDrawer } from "../state/layout";
import { current, edit } from "../state/library";
import { unseen, view } from "../state/windowing";
import { IconButton } from "./icons";
import { Ring } from "./Ring";
import { ForgetKey } from "./Trouble";

export function editSystem(): void {
  if (drawers.peek().window) openDrawer("window");
  requestAnimationFrame(() => requestAnimationFrame(() => document.getElementById("system-prompt")?.focus()));
}

export function Panel() {
  const drawer = drawers.value.window;
  const shut = drawer && opened.value !== "window";
  return (
    <aside id="window-panel" class={`wing right ${drawer ? "drawer" : ""} ${shut ? "" : "open"}`} inert={shut} aria-label="Window and settings">
      <section class="pane" aria-labelledby="window-heading">
        <div class="wing-head">
          <h2 id="window-heading" tabIndex={-1}>The window</h2>
          {drawer && <IconButton icon="close" label="Close window and settings" class="shut" onClick={shutDrawer} />}
        </div>
        <WindowPane />
      </section>
      <section class="pane" aria-labelledby="last-heading">
        <h2 id="last-heading">Last answer</h2>
        <LastAnswer />
      </section>
      <section class="pane" aria-labelledby="system-heading">
        <h2 id="system-heading">System prompt</h2>
        <textarea
          id="system-prompt"
          aria-labelledby="system-heading"
          rows={3}
          placeholder="How the model should behave"
          value={current.value.system}
          onInput={(event) => { const system = event.currentTarget.value; edit((tree) => ({ ...tree, system })); }}
        />
      </section>
      <section class="pane" aria-labelledby="sampling-heading">
        <h2 id="sampling-heading">Sampling</h2>
        <Sampling />
        <ForgetKey />
      </section>
    </aside>
  );
}

function WindowPane() {
  const seen = view.value;
  return (
    <>
      {seen ? (
        <>
          <Ring view={seen} />
          <p class="account">{sentence(seen)}</p>
        </>
      ) : (
        <p class="quiet">{unseen.value ? unseen.value : "Once there are words, this shows how much of them the model can see."}</p>
      )}
      <Legend />
      <Field name="windowSize" label="Window, in tokens" hint="Smaller than the model's own, to try what it does: the model was not trained with it." min={1} step={1} />
    </>
  );
}

const ORDER: Kind[] = ["direct", "pinned", "some", "relayed", "out"];

function Legend() {
  const all = view.value ? sums(view.value) : null;
  return (
    <dl class="legend" aria-label="Legend">
      {ORDER.filter((kind) => kind !== "some" || view.value?.mixed).map((kind) => (
        <div key={kind}>
          <dt><span class={`part swatch ${kind}`} aria-hidden="true" /> {WORDS[kind].label} {all && <b>{number(all[kind])}</b>}</dt>
          <dd>{WORDS[kind].says}</dd>
        </div>
      ))}
    </dl>
  );
}

function LastAnswer() {
  const figures = path(current.value).findLast((message) => message.role === "assistant" && message.figures)?.figures;
  if (!figures || Object.keys(figures).length === 0) return <p class="quiet">Speed and reuse show here.</p>;
  const rows: [string, string | null | undefined][] = [
    ["Writing", figures.tokensPerSecond ? rate(figures.tokensPerSecond) : null],
    ["First token after", figures.firstTokenMs !== undefined ? seconds(figures.firstTokenMs) : null],
    ["Reading", figures.promptPerSecond ? rate(figures.promptPerSecond) : null],
    ["Prompt tokens", reuse(figures)],
    ["Windowed layers", figures.layers ? `${figures.windowedLayers ?? 0} of ${figures.layers}` : null],
    ["Slid out", figures.evicted !== undefined ? `${number(figures.evicted)} tokens` : null],
  ];
  return (
    <dl class="rows">
      {rows.map(([name, value]) => value && <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
    </dl>
  );
}

function Sampling() {
  return (
    <>
      <Field name="temperature" label="Temperature" min={0} max={2} step={0.05} start={0.7} />
      <Field name="top_p" label="Top p" min={0.05} max={1} step={0.05} start={1} />
      <Field name="top_k" label="Top k" min={1} step={1} />
      <Field name="max_tokens" label="Most tokens" min={1} step={1} />
      <Field name="seed" label="Seed" min={0} step={1} hint="The same seed, the same answer." />
      <button type="button" class="plain small" disabled={Object.keys(current.value.settings).length === 0} onClick={() => edit((tree) => ({ ...tree, settings: {} }))}>
        Leave all to the model
      </button>
    </>
  );
}

interface FieldProps {
  name: keyof Settings;
  label: string;
  min: number;
  max?: number;
  step: number;
  /** Where the slider stands while nothing is set; a field without it has no slider. */
  start?: number;
  hint?: string;
}

function Field({ name, label, min, max, step, start, hint }: FieldProps) {
  const value = current.value.settings[name];
  const id = `set-${name}`;
  const set = (text: string) => {
    const wanted = text.trim() === "" ? undefined : Number(text);
    if (wanted !== undefined && (!Number.isFinite(wanted) || wanted < min || (max !== undefined && wanted > max))) return;
    const whole = wanted !== undefined && step === 1 ? Math.round(wanted) : wanted;
    edit((tree) => {
      const { [name]: _, ...rest } = tree.settings;
      return { ...tree, settings: whole === undefined ? rest : { ...rest, [name]: whole } };
    });
  };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input id={id} type="number" inputMode="decimal" min={min} max={max} step={step === 1 ? 1 : "any"} value={value ?? ""} placeholder="model's own" aria-describedby={hint && `${id}-hint`} onChange={(event) => set(event.currentTarget.value)} />
      {start !== undefined && (
        <input type="range" aria-label={`${label}, slider`} class={value === undefined ? "unset" : ""} min={min} max={max} step={step} value={value ?? start} onInput={(event) => set(event.currentTarget.value)} />
      )}
      {hint && <small id={`${id}-hint`}>{hint}</small>}
    </div>
  );
}
