import { modelOf } from "../state/answering";
import { drawers, openDrawer } from "../state/layout";
import { current, edit } from "../state/library";
import { theme, type Theme } from "../state/preferences";
import { models } from "../state/server";
import { IconButton } from "./icons";

const NEXT: Record<Theme, Theme> = { auto: "light", light: "dark", dark: "auto" };
const THEME_ICON = { auto: "auto", light: "sun", dark: "moon" } as const;
const THEME_NAME = { auto: "as the system", light: "light", dark: "dark" };

export function Header() {
  const conversation = current.value;
  const rename = (title: string) =>
    edit((tree) => (title.trim() && title !== tree.title ? { ...tree, title: title.trim(), titled: true } : tree));
  return (
    <header class="lintel">
      {drawers.value.list && <IconButton icon="menu" label="Conversations" onClick={() => openDrawer("list")} />}
      <div class="heading">
        <h1 class="hidden">Sash: {conversation.title}</h1>
        <input
          class="title"
          aria-label="Title of this conversation"
          value={conversation.title}
          maxLength={120}
          onKeyDown={(event) => { if (event.key === "Enter") event.currentTarget.blur(); }}
          onBlur={(event) => { rename(event.currentTarget.value); event.currentTarget.value = current.peek().title; }}
        />
        <ModelName />
      </div>
      <IconButton
        icon={THEME_ICON[theme.value]}
        label={`Theme: ${THEME_NAME[theme.value]}. Change`}
        onClick={() => (theme.value = NEXT[theme.peek()])}
      />
      {drawers.value.window && <IconButton icon="sash" label="Window and settings" onClick={() => openDrawer("window")} />}
    </header>
  );
}

function ModelName() {
  const chosen = modelOf(current.value);
  if (!chosen) return <span class="model">No model yet</span>;
  if (models.value.length === 1) return <span class="model">{chosen}</span>;
  return (
    <select
      class="model"
      aria-label="Model"
      value={chosen}
      onChange={(event) => { const model = event.currentTarget.value; edit((tree) => ({ ...tree, model })); }}
    >
      {models.value.map(({ id }) => <option key={id} value={id}>{id}</option>)}
    </select>
  );
}
