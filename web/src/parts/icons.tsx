// Line drawings of 20 by 20, coloured by the text around them. They only repeat what a label says.

const SHAPES = {
  menu: "M3 6h14M3 10h14M3 14h14",
  plus: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5L5 15",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  copy: "M7 7h9v9H7zM4 13V4h9",
  edit: "M4 16l1-4 8-8 3 3-8 8zM11 6l3 3",
  again: "M16 10a6 6 0 1 1-2-4.5M16 3v4h-4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v11M5 10l5 5 5-5",
  pin: "M7 3h6l-1 6 3 3H5l3-3zM10 12v5",
  bin: "M4 6h12M8 6V4h4v2M6 6l1 10h6l1-10",
  out: "M10 12V3M6 6l4-4 4 4M4 12v4h12v-4",
  into: "M10 3v9M6 9l4 4 4-4M4 13v3h12v-3",
  sun: "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM10 1.5v2M10 16.5v2M1.5 10h2M16.5 10h2M4 4l1.4 1.4M14.6 14.6L16 16M16 4l-1.4 1.4M5.4 14.6L4 16",
  moon: "M15.5 12.5A6.5 6.5 0 0 1 7.5 4.5a6.5 6.5 0 1 0 8 8z",
  auto: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  sash: "M4 2h12v16H4zM4 10h12M10 2v16",
} as const;

export type IconName = keyof typeof SHAPES;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" width="18" height="18" aria-hidden="true" focusable="false">
      <path d={SHAPES[name]} />
    </svg>
  );
}

interface ButtonProps {
  icon: IconName;
  label: string;
  onClick: (event: MouseEvent) => void;
  disabled?: boolean;
  pressed?: boolean;
  class?: string;
  title?: string;
}

export function IconButton({ icon, label, onClick, disabled, pressed, class: extra, title }: ButtonProps) {
  return (
    <button
      type="button"
      class={`icon-button ${extra ?? ""}`}
      aria-label={label}
      title={title ?? label}
      disabled={disabled}
      aria-pressed={pressed}
      onClick={onClick}
    >
      <Icon name={icon} />
    </button>
  );
}

/** A sash window: two sashes of two panes, the lower one lit and open by a hand's breadth. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" width="30" height="30" aria-hidden="true" focusable="false">
      <rect class="mark-frame" x="4" y="2" width="24" height="28" rx="2" />
      <rect class="mark-sky" x="7" y="5" width="8" height="9" />
      <rect class="mark-sky" x="17" y="5" width="8" height="9" />
      <rect class="mark-light" x="7" y="19" width="8" height="8" />
      <rect class="mark-light" x="17" y="19" width="8" height="8" />
      <rect class="mark-latch" x="13" y="15" width="6" height="2.4" rx="1.2" />
    </svg>
  );
}
