/** Small drawings, all hidden from screen readers: a word always stands beside them or in the control's name. */

import type { ComponentChildren } from "preact";

function Icon({ children, size = 16 }: { children: ComponentChildren; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false">
      {children}
    </svg>
  );
}

export const Check = () => <Icon><path d="M3 8.5 6.5 12 13 4.5" /></Icon>;
export const Cross = () => <Icon><path d="m4 4 8 8M12 4l-8 8" /></Icon>;
export const Undo = () => <Icon><path d="M5.5 3 2.5 6l3 3M3 6h6.5a3.5 3.5 0 0 1 0 7H6" /></Icon>;
export const Warn = () => <Icon><path d="M8 2 1.5 13.5h13L8 2ZM8 6.5v3.2M8 11.7v.1" /></Icon>;
export const Info = () => <Icon><circle cx="8" cy="8" r="6.3" /><path d="M8 7.3v3.9M8 4.8v.1" /></Icon>;
export const Play = () => <Icon><path d="M4.5 3v10l8-5-8-5Z" fill="currentColor" /></Icon>;
export const Stop = () => <Icon><rect x="4" y="4" width="8" height="8" rx="1" fill="currentColor" /></Icon>;
export const Clock = () => <Icon><circle cx="8" cy="8" r="6.3" /><path d="M8 4.5V8l2.5 1.8" /></Icon>;
export const Dot = () => <Icon><circle cx="8" cy="8" r="3.4" /></Icon>;
export const Eye = () => <Icon><path d="M1.5 8S4 3.8 8 3.8 14.5 8 14.5 8 12 12.2 8 12.2 1.5 8 1.5 8Z" /><circle cx="8" cy="8" r="1.8" /></Icon>;
export const Upload = () => <Icon><path d="M8 11V3M4.8 6 8 2.8 11.2 6M2.5 11v2.2h11V11" /></Icon>;
export const Download = () => <Icon><path d="M8 2.5v8M4.8 7.5 8 10.7l3.2-3.2M2.5 11.5v1.7h11v-1.7" /></Icon>;
export const Next = () => <Icon><path d="M3 8h9.5M9 4.2 12.8 8 9 11.8" /></Icon>;
export const Back = () => <Icon><path d="M13 8H3.5M7 4.2 3.2 8 7 11.8" /></Icon>;
export const Search = () => <Icon><circle cx="7" cy="7" r="4.3" /><path d="m10.3 10.3 3.5 3.5" /></Icon>;
export const Note = () => <Icon><path d="M2.5 3h11v8h-6L4.5 13.5V11h-2V3Z" /></Icon>;
export const Lock = () => <Icon><rect x="3.5" y="7" width="9" height="6.5" rx="1" /><path d="M5.5 7V5a2.5 2.5 0 0 1 5 0v2" /></Icon>;
export const Page = () => <Icon><path d="M4 1.8h5.5L12.5 5v9.2H4V1.8ZM6 8h4.5M6 10.8h4.5" /></Icon>;
export const Keys = () => <Icon><rect x="1.5" y="4" width="13" height="8.5" rx="1.2" /><path d="M4 7h.1M7 7h.1M10 7h.1M12 7h.1M4.5 9.8h7" /></Icon>;
export const Leave = () => <Icon><path d="M9.5 2.5H3v11h6.5M6.5 8H14M11 5l3 3-3 3" /></Icon>;
export const Target = () => <Icon><circle cx="8" cy="8" r="4.2" /><path d="M8 1.5v3M8 11.5v3M1.5 8h3M11.5 8h3" /></Icon>;
export const Brain = () => (
  <svg class="mark" width="24" height="24" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
    <ellipse cx="16" cy="16" rx="10.5" ry="12.5" fill="none" stroke="currentColor" stroke-width="2" />
    <path d="M16 3.5v25" stroke="currentColor" stroke-width="1.5" opacity="0.6" />
    <circle cx="21" cy="12" r="3.8" class="mark-spot" />
  </svg>
);
