import { Component, h, type ComponentChild, type FunctionComponent } from "preact";

/** A component that is drawn anew only where a property changed. */
export function memo<P extends object>(inner: FunctionComponent<P>): FunctionComponent<P> {
  class Memo extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const before = this.props as Record<string, unknown>;
      return Object.entries(next).some(([key, value]) => key !== "children" && before[key] !== value);
    }
    override render(props: P): ComponentChild {
      return h(inner, props);
    }
  }
  return Memo as unknown as FunctionComponent<P>;
}
