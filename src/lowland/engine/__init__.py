"""Where work is done: a setup, a function, items in, results out; on this process, this machine, or a cluster."""

from lowland.core.names import ENGINES
from lowland.core.pace import Event, OnEvent
from lowland.engine.base import Engine, Result, Workers
from lowland.engine.processes import Processes
from lowland.engine.ray import Ray
from lowland.engine.select import select
from lowland.engine.serial import Serial

__all__ = ["ENGINES", "Engine", "Event", "OnEvent", "Processes", "Ray", "Result", "Serial", "Workers", "select"]
