import { describe, parts, type Share } from "../model/view";

/** The stripe beside a message: its tokens from the oldest at the top to the newest, each part as long as it has tokens. */
export function Stripe({ share }: { share: Share | undefined }) {
  if (!share) return <span class="stile unknown" aria-hidden="true" />;
  return (
    <span class="stile" role="img" aria-label={`What the model sees of it: ${describe(share)}`} title={describe(share)}>
      {parts(share).map(({ kind, tokens }) => <span key={kind} class={`part ${kind}`} style={{ flexGrow: tokens }} />)}
    </span>
  );
}
