"""Files and folders, on this machine and remote."""
