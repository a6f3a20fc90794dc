// Conversations in the browser's IndexedDB: the whole trees in one store, their titles for the list in another.

import type { Conversation } from "../model/conversation";

export interface Summary {
  id: string;
  title: string;
  updated: number;
}

const NAME = "sash";
const TREES = "conversations";
const LIST = "summaries";

let opened: Promise<IDBDatabase> | undefined;

function open(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(TREES, { keyPath: "id" });
      request.result.createObjectStore(LIST, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the store of conversations"));
  });
  return opened;
}

function answer<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export async function list(): Promise<Summary[]> {
  const database = await open();
  const all = await answer<Summary[]>(database.transaction(LIST).objectStore(LIST).getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export async function load(id: string): Promise<Conversation | undefined> {
  const database = await open();
  return answer<Conversation | undefined>(database.transaction(TREES).objectStore(TREES).get(id));
}

export async function loadAll(): Promise<Conversation[]> {
  const database = await open();
  return answer<Conversation[]>(database.transaction(TREES).objectStore(TREES).getAll());
}

async function write(work: (trees: IDBObjectStore, list: IDBObjectStore) => void): Promise<void> {
  const database = await open();
  const transaction = database.transaction([TREES, LIST], "readwrite");
  work(transaction.objectStore(TREES), transaction.objectStore(LIST));
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

export function save(conversation: Conversation): Promise<void> {
  const { id, title, updated } = conversation;
  return write((trees, summaries) => {
    trees.put(conversation);
    summaries.put({ id, title, updated } satisfies Summary);
  });
}

export function erase(id: string): Promise<void> {
  return write((trees, summaries) => {
    trees.delete(id);
    summaries.delete(id);
  });
}
