"""Pictures of label maps and HTML pages."""
