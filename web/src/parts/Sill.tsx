import { before, number, parts, sums, total } from "../model/view";
import { drawers, openDrawer } from "../state/layout";
import { unseen, view } from "../state/windowing";

/** The whole conversation as one band over the message box, with the sash over the part that is in direct sight. */
export function Sill() {
  const seen = view.value;
  const open = () => {
    if (drawers.value.window) openDrawer("window");
    else document.getElementById("window-heading")?.focus();
  };
  if (!seen) {
    return <p class="band-note">{unseen.value ? `The window cannot be shown: ${unseen.value}` : "What the model can still see will show here."}</p>;
  }
  const all = sums(seen);
  const past = seen.size === null ? 0 : all.relayed + all.out + all.some;
  const drawn = seen.shares.reduce((sum, share) => sum + total(share), 0);
  return (
    <button type="button" class="band" onClick={open}>
      <span class="band-words">
        <span>{number(all.direct + all.pinned)} in sight</span>
        <span class="hidden">, </span>
        {past > 0 && <span class="past">{number(past)} slid past</span>}
        <span class="hidden">, of </span>
        <span class="of">{number(seen.tokens)} tokens</span>
        <span class="hidden">. Show the window</span>
      </span>
      <span class="strip" aria-hidden="true">
        {seen.shares.map((share, index) => (
          <span key={index} class="cell" style={{ flexGrow: Math.max(total(share), 1) }}>
            {parts(share).map(({ kind, tokens }) => <span key={kind} class={`part ${kind}`} style={{ flexGrow: tokens }} />)}
          </span>
        ))}
        {seen.size !== null && <span class="sash-frame" style={{ left: `${(100 * before(seen)) / Math.max(drawn, 1)}%` }} />}
      </span>
    </button>
  );
}
