import { render } from "preact";
import "./style/base.css";
import "./style/layout.css";
import "./style/talk.css";
import "./style/window.css";
import "./style/code.css";
import "./state/preferences";
import { start } from "./state/library";
import { greet } from "./state/server";
import { watch } from "./state/windowing";
import { App } from "./parts/App";

const page = document.getElementById("page")!;
void start().then(() => {
  render(<App />, page);
  watch();
});
void greet();
