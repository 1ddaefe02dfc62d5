"""The modules that only POSIX systems have: None on Windows. No other module imports them."""

try:
    import fcntl
    import resource
except ImportError:
    fcntl = resource = None

__all__ = ["fcntl", "resource"]
