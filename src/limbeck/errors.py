"""What can go wrong, in a sentence, and the exit code it ends with."""


class LimbeckError(Exception):
    """The run failed part-way; what was finished is kept and the same command goes on (exit code 1)."""

    exit_code = 1


class InputError(LimbeckError):
    """What the user gave cannot work; raised before anything costly is done (exit code 2)."""

    exit_code = 2
