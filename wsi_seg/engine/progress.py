"""How a run tells what it does."""

from __future__ import annotations

from typing import Protocol

from wsi_seg.records import Commit, SlidePlan, SlideResult


class Progress(Protocol):
    """Is told how a run goes."""

    def starting(self, what: str) -> None:
        """Something that takes seconds begins."""

    def begin(self, slides: int) -> None:
        """So many slides are about to be done."""

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        """A slide's work is known; `resumed` of its blocks were done before."""

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        """A block is done."""

    def ended(self, result: SlideResult) -> None:
        """A slide is done, has failed, or is left to another run."""


class Silent:
    """Tells nobody."""

    def starting(self, what: str) -> None: ...

    def begin(self, slides: int) -> None: ...

    def planned(self, plan: SlidePlan, resumed: int) -> None: ...

    def advanced(self, plan: SlidePlan, commit: Commit) -> None: ...

    def ended(self, result: SlideResult) -> None: ...
