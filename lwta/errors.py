"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A bad input, named in one sentence together with its remedy.

    Commands print it without a traceback and exit with 1; any other exception is a defect of ours
    and keeps its traceback.
    """
