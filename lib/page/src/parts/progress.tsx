/** A bar with its share in words; without a share it only says that something is going on. */

export function Progress({ share, label }: { share: number | null; label: string }) {
  return (
    <div class="progress">
      {share == null ? <progress aria-label={label} /> : <progress aria-label={label} max={1} value={share} />}
      <span class="progress-figure">{share == null ? "" : `${Math.round(share * 100)} %`}</span>
    </div>
  );
}
