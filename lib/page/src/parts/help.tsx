/** What the keys do. */

import { Dialog } from "./dialog";

export const KEYS: [string, [string, string][]][] = [
  ["Everywhere", [
    ["?", "this help"],
    ["n", "next study"],
    ["w", "back to the worklist"],
    ["/", "search in the worklist"],
    ["Esc", "close a window"],
  ]],
  ["Findings", [
    ["j or ↓", "next finding"],
    ["k or ↑", "previous finding"],
    ["a", "accept"],
    ["r", "reject"],
    ["u", "undo the decision"],
    ["c", "write a comment"],
    ["f", "finish the review"],
  ]],
  ["Picture", [
    ["+ and −", "threshold up and down"],
    ["o", "overlay on and off"],
    ["b", "bands on and off"],
    ["s", "swipe with the pseudo-healthy image"],
    ["d", "both images side by side"],
    ["1 to 6", "planes, axial, coronal, sagittal, 3-D, all"],
    ["0", "scroll to the finding again"],
    ["PgUp/Dn", "slices, where the picture has the focus"],
  ]],
];

export function Help({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keys and gestures" onClose={onClose} wide>
      <div class="keys">
        {KEYS.map(([title, keys]) => (
          <section>
            <h3>{title}</h3>
            <dl>{keys.map(([key, what]) => <div><dt><kbd>{key}</kbd></dt><dd>{what}</dd></div>)}</dl>
          </section>
        ))}
      </div>
      <p>
        In the picture: drag to move the cross, wheel to scroll through slices (or drag the strip at a slice's edge), Ctrl and wheel to zoom, right button
        for brightness and contrast, Shift or the middle button to move, two fingers to zoom and move; in 3-D, drag to turn. Letters
        at the edges name the patient's sides: L is the patient's left.
      </p>
      <p class="research-note">For research use only; not a medical device. The marks show what is unusual compared with healthy scans, not what it is.</p>
    </Dialog>
  );
}
