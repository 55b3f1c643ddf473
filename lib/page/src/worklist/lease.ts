/** Who works on a study, as the server and the reader's name tell. */

import type { Lease, Study } from "../types";

/** The lease of a study that is not over. */
export function leaseOf(study: Study | null | undefined): Lease | null {
  return study?.lease && new Date(study.lease.until).getTime() > Date.now() ? study.lease : null;
}

/** Whether a lease is this reader's: a namesake of another account is somebody else. */
export function isMine(lease: Lease, reader: string): boolean {
  return lease.yours ?? lease.reader === reader;
}
