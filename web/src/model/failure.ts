// What can go wrong between the page and the server, each with one clear line and whether trying again may help.

export type FailureKind = "unreachable" | "key" | "busy" | "dropped" | "refused" | "server";

export class Failure extends Error {
  constructor(
    readonly kind: FailureKind,
    message: string,
    readonly status = 0,
    /** Seconds after which the server asks to try again. */
    readonly wait: number | null = null,
  ) {
    super(message);
    this.name = "Failure";
  }
}

const UNREACHABLE = "The server cannot be reached. Is `sash serve` still running?";
const DROPPED = "The connection broke before the answer was finished.";

function stated(body: unknown): string {
  const error = (body as { error?: { message?: unknown } } | null)?.error;
  return typeof error?.message === "string" ? error.message.trim() : "";
}

/** The failure that a response with an error status stands for. */
export function fromResponse(status: number, body: unknown, retryAfter: string | null = null): Failure {
  const said = stated(body);
  const seconds = retryAfter !== null && /^\d+$/.test(retryAfter.trim()) ? Number(retryAfter) : null;
  const later = seconds ? ` Try again in ${seconds} s.` : " Try again in a moment.";
  if (status === 401 || status === 403) return new Failure("key", said || "The server asks for an API key.", status);
  if (status === 429) return new Failure("busy", `The server is busy: its queue is full.${later}`, status, seconds);
  if (status === 503) return new Failure("busy", `${sentence(said) || "The server is not ready."}${later}`, status, seconds);
  if (status >= 500) return new Failure("server", `The server failed (${status})${said ? `: ${said}` : "."}`, status);
  return new Failure("refused", said || `The server refused the request (${status}).`, status);
}

/** The failure that an error event inside a stream stands for. */
export function fromEvent(body: unknown): Failure {
  return new Failure("server", `The answer broke off${stated(body) ? `: ${stated(body)}` : "."}`);
}

export function fromThrown(error: unknown, streaming: boolean): Failure {
  if (error instanceof Failure) return error;
  if (error instanceof TypeError) {
    return streaming ? new Failure("dropped", DROPPED) : new Failure("unreachable", UNREACHABLE);
  }
  return new Failure("dropped", streaming ? DROPPED : String((error as Error)?.message ?? error));
}

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;

/** How long to wait before a question that failed is asked again, the `tries`-th time; null where that would not help. */
export function retryAfter(error: unknown, tries: number): number | null {
  const failure = fromThrown(error, false);
  if (failure.kind === "refused" || failure.kind === "key") return null;
  return Math.max((failure.wait ?? 0) * 1000, Math.min(FIRST_RETRY_MS * 2 ** (tries - 1), LAST_RETRY_MS));
}

export const dropped = (): Failure => new Failure("dropped", DROPPED);

function sentence(text: string): string {
  if (!text) return "";
  const capital = text[0]!.toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
