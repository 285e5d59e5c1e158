"""Progress on the terminal: one bar for clips, one for the frames of the clip in work."""

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
    """Frames a second, or a blank where none is known yet."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None or not task.fields.get("is_clip"):
            return Text("")
        return Text(f"{speed:.2f} frames/s", style="cyan")


class ProgressBars:
    """Bars while clips are in work, and one line that stays for each clip that is done.

    Args:
        console: where to print.
        enabled: whether bars are drawn; the lines of finished clips are printed all the same.
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
        """Draws the bar of `clips` clips."""
        self._progress.start()
        self._clips = self._progress.add_task("clips", total=clips)

    def start_clip(self, name: str, frames: int) -> None:
        """Draws a bar of a clip's frames."""
        self._frames = self._progress.add_task(name, total=frames, is_clip=True)

    def frame_done(self) -> None:
        """Moves the clip's bar on."""
        if self._frames is not None:
            self._progress.advance(self._frames)

    def clip_done(self, line: str) -> None:
        """Removes the clip's bar and prints `line`."""
        if self._frames is not None:
            self._progress.remove_task(self._frames)
        if self._clips is not None:
            self._progress.advance(self._clips)
        self.console.print(line, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Removes all bars."""
        self._progress.stop()
