"""The run's log: ``log.jsonl`` (one record a line) and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmrisynth.bids.atomic import write_text

LOG_NAME = "log.jsonl"


class RunLog:
    """Append records; on a restart drop those after the checkpoint, so that no step is told twice.

    Parameters
    ----------
    out : Path
        Folder of the run.
    step : int
        Step the run goes on from; later records are removed, at step 0 all.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / LOG_NAME
        kept = [record for record in read_log(path) if step > 0 and record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._stream = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one record; numbers also go to TensorBoard as ``kind/name``."""
        self._stream.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if item is not None:
                        self._board.add_scalar(f"{kind}/{name}/{i}", item, step)

    def image(self, name: str, image_HW: Any, step: int) -> None:
        """Show a grey picture (H, W), values 0 to 1, in TensorBoard."""
        self._board.add_image(name, image_HW, step, dataformats="HW")

    def close(self) -> None:
        """Flush and close both."""
        self._stream.close()
        self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log; half-written lines (after a kill) are left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records
