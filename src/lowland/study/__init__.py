"""Studies: methods x seeds trained alike, surveyed on one scale, and compared."""

from lowland.study.demo import DemoResult, demo

__all__ = ["DemoResult", "demo"]
