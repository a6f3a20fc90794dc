import type { Message } from "../model/conversation";
import { figuresOf } from "../model/format";

/** What one answer cost, in one quiet line. */
export function FiguresLine({ message }: { message: Message }) {
  const said = figuresOf(message);
  return said.length > 0 ? <span class="figures">{said.map((part) => <span key={part}>{part}</span>)}</span> : null;
}
