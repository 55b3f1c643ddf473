#!/usr/bin/env python3
"""Back up what a server cannot make again, while it runs; check a backup; put it back.

    backup.py make    TARGET.tar --app /opt/anomaly --studies /var/lib/anomaly/studies [--archive-folder F] [--scans]
    backup.py verify  FILE.tar
    backup.py restore FILE.tar --app ... --studies ... [--archive-folder F]     into places that are empty

In it: models of the site with their versions and keys, tokens, the audit log and its key (``app/``); labels, reviews
and the table of the datastore (``studies/``); the same of scans in an archive (``archive/``, by default
~/.cache/monailabel); with ``--scans`` the scans of the folder of studies, too. Not in it: caches, training runs,
temporary files, the shipped weights.

Each part is read under the locks that the server's own writers take, so that it is of one moment; a writer waits as
long (labels are small), readers do not. A backup holds keys and what is known of patients: it is made with mode 0600;
encrypt it where it leaves the machine. Needs Python 3.10 and nothing else.
"""

import argparse
import fcntl
import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

SUMS = "SHA256SUMS"
TABLE = "datastore_v2.json"
WAIT_SECONDS = 60.0
PARTS = ("app", "studies", "archive")


class Refused(Exception):
    """Nothing was written; the text says why and what to do."""


@contextmanager
def held(paths: list[Path]) -> Iterator[None]:
    """The locks of the server's writers (flock). Raises Refused when one is not free within a minute."""
    with ExitStack() as stack:
        until = time.monotonic() + WAIT_SECONDS
        for path in sorted(paths):
            if not path.parent.is_dir():
                continue
            file = stack.enter_context(path.open("a"))
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise Refused(f"{path} was in use for {WAIT_SECONDS:.0f} s: try again later") from None
                    time.sleep(0.05)
        yield


class Hashing:
    """A file that is read once, with the SHA-256 of what was read."""

    def __init__(self, file):
        self._file, self._sum = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._sum.update(data)
        return data

    def hexdigest(self) -> str:
        """Of what was read until now."""
        return self._sum.hexdigest()


def wanted(path: Path, root: Path) -> bool:
    """Whether a file is content: no lock, no link, nothing that is being written or removed."""
    unfinished = (".placing-", ".writing-", ".removed-", ".publishing-")
    parts = path.relative_to(root).parts
    # Written beside its place, whatever it is called: it ends up under its own name before the lock is free.
    return (
        path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(unfinished) for part in parts)
        and not path.name.endswith((".lock", ".tmp", ".partial"))
    )


def below(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Name in the backup and path of the files in a folder and its folders."""
    for path in sorted(folder.rglob("*")):
        if wanted(path, folder):
            yield f"{prefix}/{path.relative_to(folder)}", path


def add_models(backup: "Backup", app: Path) -> None:
    """Models of the site, tokens and keys, under the locks of everything that publishes."""
    model = app / "model"
    with held(sorted({*model.rglob(".lock"), *model.rglob("*.lock")})):
        backup.add(below(model, "app/model"))


def add_audit(backup: "Backup", app: Path) -> None:
    """The audit log, its head and its key."""
    logs = app / "logs"
    with held([logs / "audit.jsonl.lock"]):
        backup.add((name, path) for name, path in below(logs, "app/logs") if path.name.startswith("audit"))


def add_datastore(backup: "Backup", prefix: str, folder: Path) -> None:
    """The table of a datastore, its labels and what was put aside with scans that were replaced; of one moment."""
    with held([folder / f"{TABLE}.lock"]):
        if (folder / TABLE).is_file():
            backup.add([(f"{prefix}/{TABLE}", folder / TABLE)])
        for name in ("labels", "replaced"):
            backup.add(below(folder / name, f"{prefix}/{name}"))


def add_scans(backup: "Backup", folder: Path) -> None:
    """The scans of a folder of studies; they do not change, so no lock is held for as long as this takes."""
    files = (path for path in sorted(folder.iterdir()) if wanted(path, folder) and not path.name.startswith(TABLE))
    backup.add((f"studies/{path.name}", path) for path in files)


class Backup:
    """A tar file that is being written, with the SHA-256 of each file in it."""

    def __init__(self, raw: BinaryIO):
        self._tar = tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.sums: dict[str, str] = {}

    def add(self, files: Iterable[tuple[str, Path]]) -> None:
        """Add files under their names; what has gone meanwhile is left out. Raises OSError for one that shrinks."""
        for name, path in files:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                entry = self._tar.gettarinfo(arcname=name, fileobj=file)
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                # Two names of one file are two files here: a link to a name that is restored later could not be made.
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", os.fstat(file.fileno()).st_size
                content = Hashing(file)
                self._tar.addfile(entry, content)
                self.sums[name] = content.hexdigest()

    def close(self) -> None:
        """Write the sums and the end of the file."""
        text = "".join(f"{digest}  {name}\n" for name, digest in self.sums.items()).encode()
        entry = tarfile.TarInfo(SUMS)
        entry.size, entry.mtime, entry.mode = len(text), int(time.time()), 0o600
        self._tar.addfile(entry, io.BytesIO(text))
        self._tar.close()


def make(target: Path, app: Path, studies: Path | None, archive: Path, scans: bool) -> int:
    """Write a backup; returns the number of files in it. Raises Refused, OSError."""
    if target.exists():
        raise Refused(f"{target} exists: name a new file")
    if not (app / "model").is_dir():
        raise Refused(f"expected the folder of an app, got {app}, which has no folder model")
    if studies and not studies.is_dir():
        raise Refused(f"expected a folder of scans, got {studies}")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    staged = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            backup = Backup(raw)
            add_models(backup, app)
            add_audit(backup, app)
            if studies:
                add_datastore(backup, "studies", studies)
            for table in sorted(archive.rglob(TABLE)) if archive.is_dir() else ():
                add_datastore(backup, f"archive/{table.parent.relative_to(archive)}", table.parent)
            if scans and studies:
                add_scans(backup, studies)
            backup.close()
            raw.flush()
            os.fsync(raw.fileno())
        count = verify(staged)
        os.rename(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    return count


def read(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The entries of a backup that may be in one. Raises Refused for any other."""
    try:
        with tarfile.open(path, mode="r:") as tar:
            for entry in tar:
                name = PurePosixPath(entry.name)
                known = entry.name == SUMS or (name.parts[0] in PARTS and len(name.parts) > 1)
                if not entry.isreg() or name.is_absolute() or ".." in name.parts or not known:
                    raise Refused(f"{path} is not one of these backups: it holds {entry.name!r}")
                yield tar, entry
    except (tarfile.TarError, EOFError) as error:
        raise Refused(f"{path} cannot be read as a backup: {error}") from error


def verify(path: Path) -> int:
    """The number of files of a whole backup. Raises Refused where it is not whole."""
    found: dict[str, str] = {}
    told = None
    for tar, entry in read(path):
        content = Hashing(tar.extractfile(entry))
        if entry.name == SUMS:
            lines = content.read().decode().splitlines()
            told = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
            continue
        while content.read(1 << 20):
            pass
        found[entry.name] = content.hexdigest()
    if told is None:
        raise Refused(f"{path} ends before its list of sums: it is cut off")
    wrong = sorted(name for name in {*found, *told} if found.get(name) != told.get(name))
    if wrong:
        raise Refused(f"{path} is damaged: {len(wrong)} files differ, the first is {wrong[0]}")
    return len(found)


def restore(path: Path, app: Path, studies: Path | None, archive: Path) -> int:
    """Put a backup back; returns the number of files. Raises Refused when something is in the way."""
    verify(path)
    places = {"app": app, "studies": studies, "archive": archive}
    targets = []
    for _, entry in read(path):
        part, _, rest = entry.name.partition("/")
        if entry.name != SUMS:
            if places[part] is None:
                raise Refused(f"the backup holds {part}/: say where it belongs with --{part}")
            targets.append(places[part] / rest)
    # The key of sessions is made by whatever starts first; everything else that is there would be overwritten.
    in_the_way = [target for target in targets if target.exists()]
    if in_the_way:
        raise Refused(f"{len(in_the_way)} files are there already, the first is {in_the_way[0]}: move them away first")
    done = 0
    for tar, entry in read(path):
        part, _, rest = entry.name.partition("/")
        if entry.name == SUMS:
            continue
        target = places[part] / rest
        make_folders(target.parent)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode & 0o700), "wb") as out:
            shutil.copyfileobj(tar.extractfile(entry), out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        os.utime(target, (entry.mtime, entry.mtime))
        done += 1
    return done


def make_folders(folder: Path) -> None:
    """The folder and those above it, readable for their owner only where they are new."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(mode=0o700)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "verify", "restore"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--app", type=Path, help="the folder with main.py, or the one that model/ and logs/ are in")
    parser.add_argument("--studies", type=Path, help="the folder of scans; none where they are in an archive")
    parser.add_argument("--archive-folder", type=Path, default=Path.home() / ".cache" / "monailabel",
                        help="where MONAI Label keeps its table and scans of an archive")  # fmt: skip
    parser.add_argument("--scans", action="store_true", help="also the scans of the folder of studies")
    given = parser.parse_args()
    try:
        if given.what == "verify":
            count = verify(given.file)
        elif given.app is None:
            raise Refused("say where the app is: --app FOLDER")
        elif given.what == "make":
            count = make(given.file, given.app, given.studies, given.archive_folder, given.scans)
        else:
            count = restore(given.file, given.app, given.studies, given.archive_folder)
    except (Refused, OSError) as error:
        sys.exit(f"{given.what}: {error}")
    print(f"{given.what}: {count} files, all as their SHA-256 says: {given.file}")


if __name__ == "__main__":
    main()
