"""Command lines: parse, call one public function, print, map errors to exit codes."""
