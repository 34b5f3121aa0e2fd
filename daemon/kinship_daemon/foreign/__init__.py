"""The one gate for texts of people we do not know: parsed with limits, or refused in one line."""
