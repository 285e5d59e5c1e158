"""Progress bars on the terminal: one for the clips, one for the frames of the current clip."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["ProgressBars"]


class _FramesPerSecond(ProgressColumn):
    """Frames per second; blank until it can be estimated."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None or not task.fields.get("is_clip"):
            return Text("")
        return Text(f"{speed:.2f} frames/s", style="cyan")


class ProgressBars:
    """Transient progress bars, and one permanent line per finished clip.

    Args:
        console: rich console.
        enabled: whether bars are drawn; lines of finished clips are always printed.
    """

    def __init__(self, console: Console, *, enabled: bool = True) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            _FramesPerSecond(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not enabled,
        )
        self._clips: TaskID | None = None
        self._frames: TaskID | None = None

    def start(self, clips: int) -> None:
        """Shows the bar of `clips` clips."""
        self._progress.start()
        self._clips = self._progress.add_task("clips", total=clips)

    def start_clip(self, name: str, frames: int) -> None:
        """Shows the bar of a clip's frames."""
        self._frames = self._progress.add_task(name, total=frames, is_clip=True)

    def frame_done(self) -> None:
        """Advances the bar of the current clip."""
        if self._frames is not None:
            self._progress.advance(self._frames)

    def clip_done(self, line: str) -> None:
        """Removes the bar of the current clip and prints `line`."""
        if self._frames is not None:
            self._progress.remove_task(self._frames)
        if self._clips is not None:
            self._progress.advance(self._clips)
        self.console.print(line, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Removes all bars."""
        self._progress.stop()
