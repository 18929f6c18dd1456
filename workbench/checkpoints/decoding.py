"""Decompress one file in a process of its own, with limits on memory, time and disk: an untrusted file is read there.

``python -m workbench.checkpoints.decoding SOURCE TARGET SECONDS BYTES`` writes TARGET and tells in lines of JSON how
far it is, for as long as its input is held open. The decoder checks what it reads, and nothing is known to crash it;
the process is for what is not known.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from workbench.cancel import CancelToken
from workbench.checkpoints.compressed_files import plain_bytes, plain_size
from workbench.checkpoints.machine import check_room, machine_fault
from workbench.checkpoints.weight_files import tensor_names
from workbench.errors import Cancelled, CheckpointError, MachineFault

MEMORY_BYTES = 4 << 30  # of addresses, most of which the libraries reserve and never touch
SLOWEST_BYTES = 2_000_000  # a second: what is slower has stopped
START_SECONDS = 120
_TOLD_BYTES = 64 << 20
_POLL_SECONDS = 0.2
_ENDED_FROM_OUTSIDE = (-9, -15)  # SIGKILL, SIGTERM


@dataclass(frozen=True, slots=True)
class DecodedFile:
    """What a decompressed file is: its size in bytes and its sha256."""

    bytes: int
    sha256: str


def decode_file(
    source: Path,
    target: Path,
    *,
    on_bytes: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> DecodedFile:
    """Decompress `source` into the new safetensors file `target`, in another process; a failure leaves nothing of it.

    `on_bytes` is told now and then how many bytes are written.

    Raises
    ------
    CheckpointError
        The file is damaged, or the process ended otherwise than it should.
    MachineFault
        The disk has less left than the file claims, or this machine failed otherwise.
    Cancelled
        `cancel` was set.
    """
    expected = plain_size(source)
    check_room({target.parent: expected}, what=f"{source} decompressed")
    seconds = START_SECONDS + expected // SLOWEST_BYTES
    command = [
        sys.executable,
        "-P",
        "-m",
        __name__,
        str(source),
        str(target),
        str(seconds),
        str(expected),
    ]
    package = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        ),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE,
            text=True, encoding="utf-8", env=environment,
        ) as child:  # fmt: skip
            found = _outcome(child, source, seconds, on_bytes, cancel)
        tensor_names(target, where=f"what {source} gives")
        return found
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):  # no process could be started
            raise machine_fault(error, source) from error
        raise


def _outcome(
    child: subprocess.Popen[str],
    source: Path,
    seconds: int,
    on_bytes: Callable[[int], None] | None,
    cancel: CancelToken | None,
) -> DecodedFile:
    done: list[DecodedFile] = []
    errors: list[CheckpointError] = []
    said: list[str] = []
    written: deque[int] = deque(maxlen=1)

    def listen() -> None:
        for line in child.stdout or ():
            try:
                facts = json.loads(line)
            except ValueError:  # cut off when the process was ended
                continue
            if "error" in facts:
                errors.append(CheckpointError(facts["error"]))
            elif "fault" in facts:
                errors.append(MachineFault(facts["fault"]))
            elif "sha256" in facts:
                done.append(DecodedFile(facts["bytes"], facts["sha256"]))
            else:
                written.append(facts["bytes"])

    readers = [
        threading.Thread(target=listen, daemon=True),
        threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True),
    ]
    for reader in readers:
        reader.start()
    left = float(seconds)
    try:
        while child.poll() is None:
            if cancel is not None and cancel.is_cancelled:
                raise Cancelled(f"decompressing {source} was cancelled")
            if on_bytes and written:
                on_bytes(written.pop())
            if left <= 0:
                raise CheckpointError(
                    f"{source} was not decompressed within {seconds} seconds; try again when this machine has less to "
                    "do, or copy it from its source"
                )
            try:
                child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                left -= _POLL_SECONDS
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for reader in readers:
            reader.join()
    if errors:
        raise errors[0]
    if child.returncode in _ENDED_FROM_OUTSIDE:
        raise MachineFault(
            f"decompressing {source} was ended from outside (signal {-child.returncode}), as systems do that run out "
            "of memory: close other programs, and try again"
        )
    if child.returncode or not done:
        last = said[-1].strip()[:200] if said else "no word"
        raise CheckpointError(
            f"{source} could not be decompressed: the process ended with {child.returncode} ({last}); copy it from its "
            "source"
        )
    return done[0]


def main(arguments: list[str]) -> int:
    """The process itself."""
    source, target = Path(arguments[0]), Path(arguments[1])
    seconds, expected = int(arguments[2]), int(arguments[3])
    threading.Thread(target=_end_with_parent, args=(target,), daemon=True).start()
    _limit(seconds, expected, source.stat().st_size)
    digest, written, told = hashlib.sha256(), 0, 0
    try:
        with target.open("xb") as file:
            for part in _ahead(plain_bytes(source)):
                file.write(part)
                digest.update(part)
                written += len(part)
                if written - told >= _TOLD_BYTES:
                    told = written
                    _tell({"bytes": written})
            file.flush()
            os.fsync(file.fileno())
        if written != expected:
            raise CheckpointError(
                f"{source} gave {written} bytes instead of {expected}; copy it from its source"
            )
    except CheckpointError as error:
        _tell({"error": str(error)})
        return error.exit_code
    except MemoryError:
        _tell(
            {
                "fault": f"{source} could not be decompressed within {MEMORY_BYTES >> 20} MiB of memory; close other "
                "programs, or copy it from its source"
            }
        )
        return MachineFault.exit_code
    except OSError as error:
        error.filename = None if error.filename == str(target) else error.filename
        _tell({"fault": str(machine_fault(error, target.parent))})
        return MachineFault.exit_code
    _tell({"bytes": written, "sha256": digest.hexdigest()})
    return 0


def _end_with_parent(target: Path) -> None:
    """End this process when its input ends: the other process, however it ended, held the other side of that."""
    # not by sys.stdin, whose lock would be held when this process ends by itself
    while os.read(0, 1):
        pass
    target.unlink(missing_ok=True)
    os._exit(1)


def _ahead(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same parts, the next two decoded on another thread while one is written."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, parts, None) for _ in range(2))
        while (part := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, parts, None))
            yield part


def _limit(seconds: int, expected: int, mapped: int) -> None:
    """Limits that the operating system keeps, where it has them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES + mapped),  # safetensors maps the whole file
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, expected),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of addresses
            resource.setrlimit(what, (allowed, hard))


def _tell(facts: dict[str, object]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
