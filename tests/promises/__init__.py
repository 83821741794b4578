"""What README and docs promise: commands, options, messages, reports."""
