import { describe, expect, it } from "vitest";
import { Failure, retryAfter } from "../src/model/failure";

describe("a question that failed", () => {
  it("is asked again later and later", () => {
    const broken = new TypeError("Failed to fetch");
    expect([1, 2, 3, 7, 60].map((tries) => retryAfter(broken, tries))).toEqual([500, 1000, 2000, 30_000, 30_000]);
  });

  it("waits as long as the server says", () => {
    expect(retryAfter(new Failure("busy", "full", 429, 4), 1)).toBe(4000);
  });

  it.each(["key", "refused"] as const)("is not asked again after %s", (kind) => {
    expect(retryAfter(new Failure(kind, "no"), 1)).toBeNull();
  });
});
