"""The companion package of the course: every method is the page of mathematics it came from."""
__version__ = "0.1.0"
