// The server behind the page: which models it has, and every call the page makes.

import { signal } from "@preact/signals";
import { Failure, fromResponse, fromThrown } from "../model/failure";
import { apiKey } from "./preferences";

export interface ModelCard {
  id: string;
  capabilities?: { completion_chat?: boolean };
  attention?: { window?: number | null; windows?: (number | null)[] };
}

export const models = signal<ModelCard[]>([]);
export const trouble = signal<Failure | null>(null);
/** True once the server has refused a request for want of a key. */
export const keyWanted = signal(apiKey.peek() !== "");

/** Posts (or gets, without a body) and returns the response; throws a Failure for every status but success. */
export async function call(route: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (apiKey.peek()) headers.authorization = `Bearer ${apiKey.peek()}`;
  let response: Response;
  try {
    response = await fetch(new URL(route, document.baseURI), {
      method: body === undefined ? "GET" : "POST",
      headers,
      ...(body !== undefined && { body: JSON.stringify(body) }),
      ...(signal && { signal }),
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw fromThrown(error, false);
  }
  if (response.ok) return response;
  const failure = fromResponse(
    response.status,
    await response.json().catch(() => null),
    response.headers.get("retry-after"),
  );
  if (failure.kind === "key") keyWanted.value = true;
  throw failure;
}

/** Asks for the models; what fails is kept in `trouble` and shown. */
export async function greet(): Promise<void> {
  try {
    const body = (await (await call("v1/models")).json()) as { data?: ModelCard[] };
    models.value = (body.data ?? []).filter((card) => typeof card.id === "string");
    trouble.value = models.value.length > 0 ? null : new Failure("server", "The server has no model loaded.");
  } catch (error) {
    trouble.value = fromThrown(error, false);
  }
}
