"""Local and remote files and folders, and image files."""
