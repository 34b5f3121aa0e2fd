"""What each page says: facts as JSON, drawn by a template of the same name."""
