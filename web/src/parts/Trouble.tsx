import { useSignal } from "@preact/signals";
import { canChat, modelOf } from "../state/answering";
import { current } from "../state/library";
import { apiKey } from "../state/preferences";
import { greet, keyWanted, trouble } from "../state/server";

/** One line about what keeps the page from the server, with what helps. */
export function Trouble() {
  const failure = trouble.value;
  const model = modelOf(current.value);
  if (!failure && !canChat(model)) {
    return (
      <p class="failure" role="alert">
        <span>{model} is a base model: it continues texts, at <code>/v1/completions</code>, and has no template to chat with.</span>
      </p>
    );
  }
  if (!failure) return null;
  if (failure.kind === "key") return <KeyField message={apiKey.value ? failure.message : "This server asks for an API key."} />;
  return (
    <p class="failure" role="alert">
      <span>{failure.message}</span>
      <button type="button" class="plain" onClick={() => void greet()}>Retry</button>
    </p>
  );
}

function KeyField({ message }: { message: string }) {
  const typed = useSignal("");
  return (
    <form
      class="key-form"
      onSubmit={(event) => {
        event.preventDefault();
        apiKey.value = typed.value.trim();
        void greet();
      }}
    >
      <p role="alert">{message}</p>
      <label for="api-key">API key <small>kept until this tab is closed</small></label>
      <span class="deeds">
        <input id="api-key" type="password" autocomplete="off" value={typed.value} onInput={(event) => (typed.value = event.currentTarget.value)} />
        <button type="submit" class="strong" disabled={!typed.value.trim()}>Use it</button>
      </span>
    </form>
  );
}

export function ForgetKey() {
  if (!keyWanted.value || !apiKey.value) return null;
  return <button type="button" class="plain small" onClick={() => { apiKey.value = ""; void greet(); }}>Forget the API key</button>;
}
