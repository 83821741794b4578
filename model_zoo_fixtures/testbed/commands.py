"""Calling the command lines in the test's process."""

import inspect

from click.testing import CliRunner, Result


def invoke(command, *arguments, **settings) -> Result:
    """Call a command, with stderr apart: click keeps it so by itself from 8.2 on."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(command, [str(argument) for argument in arguments], **settings)
