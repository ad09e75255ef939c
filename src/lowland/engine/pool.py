"""The driver's loop that engines with workers share: hand out, collect, replace those that died."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from lowland.core.errors import EngineError
from lowland.engine.base import Function, Result, Workers
from lowland.engine.packing import pack, unpack
from lowland.engine.scheduler import AHEAD, RETRIES, Scheduler


class Member(Protocol):
    """One worker, as its driver sees it."""

    ready: bool  # Whether it has entered the setup
    chunks: deque[list[int]]  # Places of the items it has, in the order in which it answers

    def give(self, function: Any, items: bytes) -> None:
        """Send it a chunk."""


MemberT = TypeVar("MemberT", bound=Member)


class Pool(Workers, Generic[MemberT]):
    """Workers in other processes, some of them perhaps dead."""

    answers_get_lost: bool = False
    """Whether the answer to a chunk can be lost on its way when the next one kills the worker."""

    def __init__(self) -> None:
        self.members: list[MemberT] = []
        self._begun = False
        self._false_starts = 0

    @abstractmethod
    def begin(self) -> None:
        """Check and prepare what workers need, before the first is started."""

    @abstractmethod
    def start(self) -> None:
        """Start one more worker, and note it."""

    @abstractmethod
    def reports(self) -> Iterator[tuple[MemberT, str, Any]]:
        """Wait until someone reports, or a second; yield who, the kind of the report, and its content."""

    @abstractmethod
    def post_mortem(self, member: MemberT, content: Any) -> tuple[str, str]:
        """Return how a worker died, and its last traceback if it left one."""

    @abstractmethod
    def stop(self, *, at_once: bool) -> None:
        """End all workers within seconds; they leave the setup."""

    def room(self) -> int:
        """Return how many workers there can be now."""
        return self.size

    def publish(self, function: bytes) -> Any:
        """Return a packed function in the form that `Member.give` takes."""
        return function

    def results(self, function: Function, items: Sequence[Any], chunk: int) -> Iterator[list[Result]]:
        """Hand out, and yield what comes back; see `Workers.results`."""
        if not items:
            return
        if not self._begun:
            self.begin()
            self._begun = True
        published, scheduler = self.publish(pack(function, "function")), Scheduler(len(items), chunk)
        try:
            while scheduler.unfinished:
                self._hand_out(published, items, scheduler)
                for member, kind, content in self.reports():
                    if found := self._take(member, kind, content, scheduler):
                        scheduler.finished(len(found))
                        yield found
        except BaseException:
            self.__exit__(BaseException, None, None)
            raise

    def __exit__(self, *error: Any) -> None:
        begun, self._begun = self._begun, False
        if begun:
            self.stop(at_once=error[0] is not None)

    def _hand_out(self, function: Any, items: Sequence[Any], scheduler: Scheduler) -> None:
        # replace workers that died, and give everyone something to do
        while len(self.members) < min(self.room(), scheduler.unfinished):
            self.start()
        idle = sum(not member.chunks for member in self.members)
        for _ in range(AHEAD):
            for member in self.members:
                if not member.ready or len(member.chunks) >= AHEAD:
                    continue
                if chunk := scheduler.take(len(self.members), member.chunks, idle):
                    content = pack([(index, items[index]) for index in chunk], "items")
                    idle -= not member.chunks
                    member.chunks.append(chunk)
                    member.give(function, content)

    def _take(self, member: MemberT, kind: str, content: Any, scheduler: Scheduler) -> list[Result]:
        # what a report means
        if kind == "results":
            member.chunks.popleft()
            found: list[Result] = unpack(content)
            return found
        if kind == "ready":
            member.ready, self._false_starts = True, 0
            return []
        if kind == "interrupted":
            raise KeyboardInterrupt
        if kind == "refused":
            raise EngineError(content)
        if kind == "broken":
            raise unpack(content)
        return self._bury(member, content, scheduler)

    def _bury(self, member: MemberT, content: Any, scheduler: Scheduler) -> list[Result]:
        # take back the chunks of a worker that died
        self.members.remove(member)
        reason, traceback = self.post_mortem(member, content)
        if not member.ready:
            self._false_starts += 1
            if self._false_starts > RETRIES:
                raise EngineError(f"workers do not start: the last one {reason} {traceback}".rstrip())
        for waiting in list(member.chunks)[1:]:
            scheduler.returned(waiting, suspect=self.answers_get_lost)
        return scheduler.lost(member.chunks[0], reason, traceback) if member.chunks else []
