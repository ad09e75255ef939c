"""Where points are computed: the task contract, and the engines that fulfil it."""

from lowland.engine.base import Engine, Event, OnEvent, Point, Row, Task
from lowland.engine.processes import Processes
from lowland.engine.ray import Ray
from lowland.engine.select import ENGINES, select
from lowland.engine.serial import Serial

__all__ = ["ENGINES", "Engine", "Event", "OnEvent", "Point", "Processes", "Ray", "Row", "Serial", "Task", "select"]
